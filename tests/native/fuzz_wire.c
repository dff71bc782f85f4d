/* Fuzz target: what the launcher reads from the daemon's socket, one frame after the other. */
#include "../../native/launcher/launcher.h"
#include "../../native/protocol.h"

#include <sys/socket.h>
#include <unistd.h>

#define SOCKET_BYTES_MAX 65536 /* fits into the socket's buffer, so that nobody waits */

void say(const char *format, ...)
{
	(void)format;
}

static int read_one(int fd)
{
	struct frame_header header;
	char text[256];
	bool refused;
	int r = frame_read_header(fd, &header);

	if (r < 0)
		return r;
	switch (header.type) {
	case RS_FRAME_PREPARED:
		return frame_read_text(fd, header.length, RS_TAG_MODE, text, sizeof(text));
	case RS_FRAME_ERROR:
		return frame_say_error(fd, header.length, &refused);
	default:
		return frame_skip(fd, header.length);
	}
}

static void put(int fd, const void *data, size_t size)
{
	if (write(fd, data, size) != (ssize_t)size)
		__builtin_trap();
}

/* The bytes as they are, or as the one value of a frame: else few long values would be met. */
static void put_input(int fd, const uint8_t *data, size_t size)
{
	const uint16_t tag = size && data[0] & 2 ? RS_TAG_MODE : RS_TAG_MESSAGE;
	const uint8_t type = tag == RS_TAG_MODE ? RS_FRAME_PREPARED : RS_FRAME_ERROR;
	const size_t payload = size + 8;
	const uint8_t head[] = {
	    0, payload >> 16, payload >> 8, payload, type, 1, 0, 0, tag >> 8, tag, 0, 0,
	    0, size >> 16,    size >> 8,    size};

	if (size && data[0] & 1)
		put(fd, head, sizeof(head));
	put(fd, data, size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int pair[2];

	if (size > SOCKET_BYTES_MAX || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
		return 0;
	put_input(pair[1], data, size);
	shutdown(pair[1], SHUT_WR);
	while (read_one(pair[0]) >= 0)
		;
	close(pair[0]);
	close(pair[1]);
	return 0;
}
