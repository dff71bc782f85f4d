/*
 * wire.c: frames and TLVs of docs/protocol.md.
 *
 * Reads exactly the bytes of a frame and never more, because parent and child share one
 * connection. Must not interpret; the hand-off is bytes ↔ callers. No privilege needed.
 */
#include "launcher.h"
#include "../protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

uint32_t read_u32(const uint8_t *data)
{
	return (uint32_t)data[0] << 24 | data[1] << 16 | data[2] << 8 | data[3];
}

uint16_t read_u16(const uint8_t *data)
{
	return data[0] << 8 | data[1];
}

static void write_u32(uint8_t *data, uint32_t value)
{
	data[0] = value >> 24;
	data[1] = value >> 16;
	data[2] = value >> 8;
	data[3] = value;
}

static int reserve(struct buffer *buffer, size_t more)
{
	size_t limit = RS_PAYLOAD_TO_DAEMON_BYTES_MAX + RS_HEADER_BYTES;
	size_t capacity = buffer->capacity ? buffer->capacity : 4096;
	uint8_t *data;

	if (more > limit || buffer->length + more > limit)
		return -EMSGSIZE;
	while (capacity < buffer->length + more)
		capacity *= 2;
	if (capacity == buffer->capacity)
		return 0;
	data = realloc(buffer->data, capacity);
	if (!data)
		return -ENOMEM;
	buffer->data = data;
	buffer->capacity = capacity;
	return 0;
}

int frame_begin(struct buffer *buffer, uint8_t type)
{
	*buffer = (struct buffer){0};
	int r = reserve(buffer, RS_HEADER_BYTES);

	if (r < 0)
		return r;
	memset(buffer->data, 0, RS_HEADER_BYTES);
	buffer->data[4] = type;
	buffer->data[5] = RS_PROTOCOL_VERSION;
	buffer->length = RS_HEADER_BYTES;
	return 0;
}

int frame_add(struct buffer *buffer, uint16_t tag, const void *value, size_t length)
{
	uint8_t *p;
	int r;

	if (length > RS_PAYLOAD_TO_DAEMON_BYTES_MAX || buffer->tlv_count == RS_TLV_COUNT_MAX)
		return -EMSGSIZE;
	r = reserve(buffer, RS_TLV_HEADER_BYTES + length);
	if (r < 0)
		return r;
	p = buffer->data + buffer->length;
	write_u32(p, (uint32_t)tag << 16);
	write_u32(p + 4, length);
	memcpy(p + RS_TLV_HEADER_BYTES, value, length);
	buffer->length += RS_TLV_HEADER_BYTES + length;
	buffer->tlv_count++;
	return 0;
}

int frame_add_text(struct buffer *buffer, uint16_t tag, const char *text)
{
	return frame_add(buffer, tag, text, strlen(text));
}

static int send_all(int fd, const uint8_t *data, size_t length)
{
	while (length) {
		ssize_t n = send(fd, data, length, MSG_NOSIGNAL);

		if (n < 0) {
			if (errno == EINTR)
				continue;
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		}
		data += n;
		length -= n;
	}
	return 0;
}

/* Send the frame and free it. */
int frame_send(int fd, struct buffer *buffer)
{
	int r;

	write_u32(buffer->data, buffer->length - RS_HEADER_BYTES);
	r = send_all(fd, buffer->data, buffer->length);
	free(buffer->data);
	*buffer = (struct buffer){0};
	return r;
}

int frame_send_empty(int fd, uint8_t type)
{
	const uint8_t header[RS_HEADER_BYTES] = {0, 0, 0, 0, type, RS_PROTOCOL_VERSION, 0, 0};

	return send_all(fd, header, sizeof(header));
}

/* -ECONNRESET: the daemon is gone. -ETIMEDOUT: it was silent for too long (SO_RCVTIMEO). */
int read_exactly(int fd, void *data, size_t length)
{
	uint8_t *p = data;

	while (length) {
		ssize_t n = recv(fd, p, length, 0);

		if (n == 0)
			return -ECONNRESET;
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		}
		p += n;
		length -= n;
	}
	return 0;
}

int frame_read_header(int fd, struct frame_header *ret_header)
{
	uint8_t header[RS_HEADER_BYTES];
	int r = read_exactly(fd, header, sizeof(header));

	if (r < 0)
		return r;
	if (header[5] != RS_PROTOCOL_VERSION || header[6] || header[7] ||
	    read_u32(header) > RS_PAYLOAD_BYTES_MAX)
		return -EPROTO;
	ret_header->length = read_u32(header);
	ret_header->type = header[4];
	return 0;
}

int frame_skip(int fd, size_t length)
{
	uint8_t waste[4096];

	while (length) {
		size_t n = length < sizeof(waste) ? length : sizeof(waste);
		int r = read_exactly(fd, waste, n);

		if (r < 0)
			return r;
		length -= n;
	}
	return 0;
}

/* Read one TLV: its value cut to the room there is, the rest skipped; *length is what remains. */
static int read_tlv(int fd, size_t *length, uint16_t *ret_tag, char *text, size_t text_bytes)
{
	uint8_t header[RS_TLV_HEADER_BYTES];
	size_t value, kept;
	int r;

	if (*length < sizeof(header))
		return -EPROTO;
	r = read_exactly(fd, header, sizeof(header));
	if (r < 0)
		return r;
	*length -= sizeof(header);
	value = read_u32(header + 4);
	if (value > *length)
		return -EPROTO;
	kept = value < text_bytes - 1 ? value : text_bytes - 1;
	r = read_exactly(fd, text, kept);
	if (r >= 0)
		r = frame_skip(fd, value - kept);
	if (r < 0)
		return r;
	text[kept] = 0;
	*length -= value;
	*ret_tag = read_u16(header);
	return 0;
}

/* The value of the last TLV with this tag in a payload of `length` bytes; "" if there is none. */
int frame_read_text(int fd, size_t length, uint16_t tag, char *text, size_t text_bytes)
{
	char value[MESSAGE_BYTES_MAX];
	uint16_t found;

	text[0] = 0;
	while (length) {
		int r = read_tlv(fd, &length, &found, value, sizeof(value));

		if (r < 0)
			return r;
		if (found == tag) {
			strncpy(text, value, text_bytes - 1);
			text[text_bytes - 1] = 0;
		}
	}
	return 0;
}

static const char
    *error_path; /* of --error: NULL, or where the caller wants an ERROR frame's values */

void frame_errors_to(const char *path)
{
	error_path = path;
}

/* For whoever started us: code, message and JSON, a line each (the daemon breaks no line). */
static void keep_error(const char *code, const char *message, const char *json)
{
	const int flags = O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC;
	cleanup_fd int fd = error_path ? open(error_path, flags, 0600) : -1;

	if (fd >= 0)
		dprintf(fd, "%s\n%s\n%s\n", code, message, json);
	else if (error_path)
		say("%s cannot be written: %s.", error_path, strerror(errno));
}

/* Say the message of an ERROR frame, unless it is NotAllowed and the caller wants to know. */
int frame_say_error(int fd, size_t length, bool *ret_not_allowed)
{
	char value[ERROR_JSON_BYTES_MAX], json[ERROR_JSON_BYTES_MAX] = "{}";
	char message[MESSAGE_BYTES_MAX] = "", code[64] = "";
	uint16_t tag;

	while (length) {
		int r = read_tlv(fd, &length, &tag, value, sizeof(value));

		if (r < 0)
			return r;
		if (tag == RS_TAG_MESSAGE)
			memcpy(message, value, sizeof(message) - 1);
		else if (tag == RS_TAG_CODE)
			memcpy(code, value, sizeof(code) - 1);
		else if (tag == RS_TAG_JSON)
			memcpy(json, value, sizeof(json));
	}
	if (ret_not_allowed) {
		*ret_not_allowed = !strcmp(code, "NotAllowed");
		if (*ret_not_allowed)
			return 0;
	}
	keep_error(code, message, json);
	say("%s", message[0] ? message : "the daemon refused the action without a reason");
	return 0;
}
