/*
 * record.c: EXITED → daemon → RECORD → a file that appears whole or not at all.
 *
 * The directory is opened before the action runs and used by fd, so nothing the action does to
 * names can lead the record elsewhere. Owns dir_fd. Privilege: none but the invoking user's.
 */
#include "launcher.h"
#include "../protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#define NAME_TRIES 16

int record_place_open(const char *path, struct record_place *ret_place)
{
	const char *slash = strrchr(path, '/');
	const char *name = slash ? slash + 1 : path;
	char *directory;
	int fd;

	if (!*name || !strcmp(name, ".") || !strcmp(name, "..")) {
		say("--record=%s does not name a file.", path);
		return -EINVAL;
	}
	directory = slash ? strndup(path, slash == path ? 1 : slash - path) : strdup(".");
	if (!directory)
		return -ENOMEM;
	fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	free(directory);
	if (fd >= 0 && fd < 3) {
		int high = fcntl(fd, F_DUPFD_CLOEXEC, 3);

		close(fd);
		fd = high;
	}
	if (fd < 0) {
		int r = -errno;

		say("the directory of the record %s cannot be opened: %s. Create it first.", path,
		    strerror(errno));
		return r;
	}
	*ret_place = (struct record_place){fd, name, path};
	return 0;
}

static int create_named(int dir_fd, const char *name, int *fd)
{
	*fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
	return *fd < 0 ? -errno : 0;
}

static int link_named(int dir_fd, const char *name, int *fd)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", *fd);
	return linkat(AT_FDCWD, path, dir_fd, name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

/* A name that nothing had: made with the file, or given to the one that *fd is. */
static int give_name(int dir_fd, char name[64], int *fd)
{
	int r = -EEXIST;

	for (unsigned int i = 0; i < NAME_TRIES && r == -EEXIST; i++) {
		uint64_t random;

		if (getrandom(&random, sizeof(random), 0) != sizeof(random))
			return -errno;
		snprintf(name, 64, ".rootseal-%016llx.tmp", (unsigned long long)random);
		r = *fd < 0 ? create_named(dir_fd, name, fd) : link_named(dir_fd, name, fd);
	}
	return r;
}

/* Without a name at first, where the filesystem can: a launcher that is killed leaves nothing. */
static int create_temporary(int dir_fd, char name[64], int *ret_fd)
{
	name[0] = 0;
	*ret_fd = -1;
	if (faccessat(AT_FDCWD, "/proc/self/fd", F_OK, 0) == 0)
		*ret_fd = openat(dir_fd, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0644);
	return *ret_fd < 0 ? give_name(dir_fd, name, ret_fd) : 0;
}

static int write_all(int fd, const uint8_t *data, size_t length)
{
	while (length) {
		ssize_t n = write(fd, data, length);

		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		data += n;
		length -= n;
	}
	return 0;
}

static int copy_value(int conn_fd, int fd, size_t length)
{
	uint8_t data[65536];

	while (length) {
		size_t n = length < sizeof(data) ? length : sizeof(data);
		int r = read_exactly(conn_fd, data, n);

		if (r >= 0)
			r = write_all(fd, data, n);
		if (r < 0)
			return r;
		length -= n;
	}
	return 0;
}

/* The payload of RECORD is one TLV. */
static int copy_record(int conn_fd, int fd, size_t length)
{
	uint8_t header[RS_TLV_HEADER_BYTES];
	int r;

	if (length < sizeof(header))
		return -EPROTO;
	r = read_exactly(conn_fd, header, sizeof(header));
	if (r < 0)
		return r;
	if (read_u16(header) != RS_TAG_RECORD || read_u32(header + 4) != length - sizeof(header))
		return -EPROTO;
	return copy_value(conn_fd, fd, length - sizeof(header));
}

/* Whatever the action left at the record's name makes room; a directory only if it is empty. */
static int replace(int dir_fd, const char *temporary, const char *name)
{
	if (renameat(dir_fd, temporary, dir_fd, name) == 0)
		return 0;
	if (errno != EISDIR && errno != ENOTEMPTY && errno != EEXIST)
		return -errno;
	if (unlinkat(dir_fd, name, AT_REMOVEDIR) < 0)
		return -errno;
	return renameat(dir_fd, temporary, dir_fd, name) < 0 ? -errno : 0;
}

static int store(int conn_fd, size_t length, const struct record_place *place)
{
	cleanup_fd int fd = -1;
	char temporary[64];
	int r = create_temporary(place->dir_fd, temporary, &fd);

	if (r >= 0) {
		r = copy_record(conn_fd, fd, length);
		if (r >= 0 && !temporary[0])
			r = give_name(place->dir_fd, temporary, &fd);
		if (r >= 0)
			r = replace(place->dir_fd, temporary, place->name);
		if (r < 0 && temporary[0])
			unlinkat(place->dir_fd, temporary, 0);
	}
	if (r == -ENOENT)
		say("the record %s cannot be written: the action removed its directory.",
		    place->path);
	else if (r == -ENOTEMPTY)
		say("the record %s cannot be written: the action left a directory of that name.",
		    place->path);
	else if (r < 0)
		say("the record %s cannot be written: %s. Build again.", place->path, strerror(-r));
	return r;
}

static int add_u64(struct buffer *frame, uint16_t tag, uint64_t value)
{
	uint8_t bytes[8];

	for (int i = 0; i < 8; i++)
		bytes[i] = value >> (56 - 8 * i);
	return frame_add(frame, tag, bytes, sizeof(bytes));
}

static int send_exited(int fd, const struct outcome *outcome)
{
	uint32_t status = outcome->wait_status;
	const uint8_t status_bytes[4] = {status >> 24, status >> 16, status >> 8, status};
	struct buffer frame = {0};
	int r = frame_begin(&frame, RS_FRAME_EXITED);

	if (r >= 0)
		r = frame_add(&frame, RS_TAG_WAIT_STATUS, status_bytes, sizeof(status_bytes));
	if (r >= 0)
		r = add_u64(&frame, RS_TAG_COUNT, outcome->killed);
	if (r >= 0)
		r = add_u64(&frame, RS_TAG_ESCAPES, outcome->escapes);
	if (r >= 0)
		r = add_u64(&frame, RS_TAG_MOUNTS, outcome->mounts);
	if (r >= 0)
		r = add_u64(&frame, RS_TAG_UNSEEN, outcome->unseen);
	if (r >= 0)
		return frame_send(fd, &frame);
	free(frame.data);
	return r;
}

/* PROGRESS*, then RECORD or ERROR. -ECANCELED: the reason has been said. */
static int wait_record(int conn_fd, const struct record_place *place)
{
	for (;;) {
		struct frame_header header;
		int r = frame_read_header(conn_fd, &header);

		if (r >= 0 && header.type == RS_FRAME_PROGRESS)
			r = frame_skip(conn_fd, header.length);
		else if (r >= 0 && header.type == RS_FRAME_RECORD)
			return store(conn_fd, header.length, place) < 0 ? -ECANCELED : 0;
		else if (r >= 0 && header.type == RS_FRAME_ERROR)
			return frame_say_error(conn_fd, header.length, NULL) < 0 ? -EPROTO
										 : -ECANCELED;
		else if (r >= 0)
			r = -EPROTO;
		if (r < 0)
			return r;
	}
}

int record_receive(int conn_fd, const struct outcome *outcome, const struct record_place *place)
{
	int r = send_exited(conn_fd, outcome);

	/* A daemon that closed early may have left its reason. */
	if (r >= 0 || r == -EPIPE || r == -ECONNRESET)
		r = wait_record(conn_fd, place);
	if (r < 0 && r != -ECANCELED)
		say("the Rootseal daemon went away before the action's record was there (%s). Run "
		    "`rootseal daemon ensure` and build again.",
		    strerror(-r));
	return r;
}
