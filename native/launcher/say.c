/*
 * say.c: the one way in which rootseal-exec speaks: one line on stderr.
 *
 * Owns nothing; must not allocate, must not exit. Works without stdio, so that a closed or replaced
 * stream of the caller is never touched. No privilege needed.
 */
#include "launcher.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void say(const char *format, ...)
{
	static const char prefix[] = "rootseal-exec: ";
	char line[MESSAGE_BYTES_MAX];
	va_list arguments;
	size_t length = sizeof(prefix) - 1;
	int written;

	memcpy(line, prefix, length);
	va_start(arguments, format);
	written = vsnprintf(line + length, sizeof(line) - length - 1, format, arguments);
	va_end(arguments);
	if (written < 0)
		written = 0;
	if ((size_t)written > sizeof(line) - length - 2)
		written = sizeof(line) - length - 2;
	for (size_t i = length; i < length + written; i++)
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	length += written;
	line[length++] = '\n';
	for (size_t sent = 0; sent < length;) {
		ssize_t n = write(STDERR_FILENO, line + sent, length - sent);

		if (n <= 0)
			return; /* nobody listens; the exit status still tells */
		sent += n;
	}
}
