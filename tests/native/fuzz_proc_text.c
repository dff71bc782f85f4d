/* Fuzz target: lines of mountinfo and the text of /proc/PID/stat. */
#include "mounts.h"
#include "procs.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rs_proc_info info = {0};
	struct rs_mount_line line;
	char *text = malloc(size + 1);

	if (!text)
		return 0;
	memcpy(text, data, size);
	text[size] = 0;
	rs_proc_stat_parse(text, &info);
	if (!rs_mount_line_parse(text, &line) && (line.point[0] != '/' || !*line.fstype))
		__builtin_trap();
	free(text);
	return 0;
}
