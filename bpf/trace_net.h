/*
 * trace_net.h: sockets, connections, and what their first bytes say. See trace_core.h.
 */
#pragma once

/* A pointer-sized word of the caller's memory. */
RS_FN u64 rs_user_word(u64 address, u32 index, u32 compat)
{
	u64 wide = 0;
	u32 narrow = 0;

	if (compat) {
		RS_READ_USER(&narrow, sizeof(narrow), (void *)(address + 4ULL * index));
		return narrow;
	}
	RS_READ_USER(&wide, sizeof(wide), (void *)(address + 8ULL * index));
	return wide;
}

#define RS_PIECES_MAX	4 /* of a vector; a name lies in the first */
#define RS_MSG_FASTOPEN 0x20000000

/* What a call has sent: one piece, or those of an array of struct iovec. */
struct rs_sent {
	u64 data;
	u64 vector; /* 0: none */
	u64 pieces;
	u64 bytes; /* at most, of all pieces */
};

/* Append a piece, as far as there is room. */
RS_GLOBAL int rs_payload_piece(struct rs_scratch *scratch, u64 address, u64 len)
{
	u32 tail;

	if (!scratch)
		return 0;
	tail = scratch->tail;
	if (!len || tail >= RS_PAYLOAD_BYTES)
		return 0;
	if (len > RS_PAYLOAD_BYTES - tail)
		len = RS_PAYLOAD_BYTES - tail;
	RS_OPAQUE(tail);
	RS_OPAQUE(len);
	if (len > RS_PAYLOAD_BYTES)
		return 0;
	if (RS_READ_USER(&scratch->data[RS_HEAD_BYTES + (tail & (RS_PAYLOAD_BYTES - 1))], len,
			 (void *)address))
		scratch->cut |= RS_CUT_NAME;
	else
		scratch->tail = tail + (u32)len;
	return 0;
}

RS_FN void rs_payload(struct rs_regs *regs, struct rs_scratch *scratch, struct rs_sent *sent)
{
	u64 left, len;

	if (!regs || !scratch || !sent)
		return;
	left = sent->bytes;
	if (!sent->vector) {
		rs_payload_piece(scratch, sent->data, left);
		return;
	}
	for (u32 i = 0; i < RS_PIECES_MAX; i++) {
		if (i >= sent->pieces)
			break;
		len = rs_user_word(sent->vector, 2 * i + 1, regs->compat);
		if (len > left)
			len = left;
		left -= len;
		rs_payload_piece(scratch, rs_user_word(sent->vector, 2 * i, regs->compat), len);
	}
}

/* The first bytes of a connection, and every DNS query. */
RS_FN int rs_first_bytes(struct rs_regs *regs, struct rs_sent *sent, u32 kind)
{
	struct rs_scratch *scratch;
	struct rs_payload_event *event;
	u64 len;

	if (!regs || !sent)
		return 0;
	scratch = rs_scratch_get(RS_PROGRAM_CALL, regs->scope, RS_LOSS_NETWORK);
	if (!scratch)
		return 0;
	rs_payload(regs, scratch, sent);
	if (scratch->cut) {
		rs_count(regs->scope, RS_LOSS_UNREADABLE);
		return 0;
	}
	len = scratch->tail;
	RS_OPAQUE(len);
	if (len > RS_PAYLOAD_BYTES)
		len = RS_PAYLOAD_BYTES;
	event = (struct rs_payload_event *)scratch->data;
	rs_head(&event->head, RS_EVENT_PAYLOAD, RS_HEAD_BYTES + (u32)len, regs->scope);
	event->call = regs->id;
	event->fd = (s32)regs->a[0];
	event->kind = kind;
	event->len = (u32)len;
	if (RS_OUTPUT(scratch->data, RS_HEAD_BYTES + len))
		rs_count(regs->scope, RS_LOSS_NETWORK);
	return 0;
}

/*
 * A call with a socket address: connect, bind, or a send that names its peer. Returns the port.
 *
 * Global, so that the verifier of 6.1 does not follow its result into the callers: it took the
 * path that returns 0 for all there is, and left out what they do with a port.
 */
RS_GLOBAL int rs_address(struct rs_regs *regs, u64 address, u64 len)
{
	void *file, *socket = 0, *sock = 0;
	struct rs_address_event *event;
	u16 type = 0, protocol = 0;
	struct rs_scratch *scratch;
	struct rs_file described;

	if (!regs)
		return 0;
	scratch = rs_scratch_get(RS_PROGRAM_CALL, regs->scope, RS_LOSS_NETWORK);
	if (!scratch)
		return 0;
	file = rs_file_of((s32)regs->a[0]);
	event = (struct rs_address_event *)scratch->data;
	rs_head(&event->head, RS_EVENT_ADDRESS, sizeof(*event), regs->scope);
	if (!rs_describe(file, &described) && (described.mode & RS_S_IFMT) == RS_S_IFSOCK &&
	    !RS_GET(file_private, file, &socket) && socket) {
		RS_GET(socket_type, socket, &type);
		if (!RS_GET(socket_sk, socket, &sock) && sock)
			RS_GET(sock_protocol, sock, &protocol);
	}
	event->call = regs->id;
	event->fd = (s32)regs->a[0];
	event->result = (s32)regs->result;
	event->socket_type = type;
	event->protocol = protocol;
	RS_OPAQUE(len);
	if (len > RS_ADDR_BYTES)
		len = RS_ADDR_BYTES;
	event->address_len = (u32)len;
	if (RS_READ_USER(event->address, len, (void *)address)) {
		if (regs->result != -RS_EFAULT)
			rs_count(regs->scope, RS_LOSS_UNREADABLE);
		event->address_len = 0;
	}
	rs_emit(event, sizeof(*event), regs->scope, RS_LOSS_NETWORK);
	if (event->address[0] != 2 &&
	    event->address[0] != 10) /* AF_INET, AF_INET6; sa_family is little-endian here */
		return 0;
	return (event->address[2] << 8 | event->address[3]) | (u32)type << 16;
}

RS_FN int rs_on_connect(struct rs_regs *regs)
{
	struct rs_conn_key key = {};
	u32 kind, seen;

	if (!regs)
		return 0;
	seen = (u32)rs_address(regs, regs->a[1], regs->a[2] & 0xffffffff);
	if (regs->id == RS_CALL_BIND || !seen ||
	    (regs->result < 0 && regs->result != -RS_EINPROGRESS))
		return 0;
	if ((seen & 0xffff) == 53)
		kind = RS_CONN_DNS;
	else if (seen >> 16 == 1)
		kind = RS_CONN_STREAM;
	else
		return 0;
	key.tgid = (u32)(bpf_get_current_pid_tgid() >> 32);
	key.fd = (s32)regs->a[0];
	RS_UPDATE(rs_conns, &key,
		  &kind); /* least recently used entries give way; only a host name is at stake */
	return 0;
}

RS_FN int rs_on_socket(struct rs_regs *regs)
{
	struct rs_socket_event event = {};

	if (!regs || regs->result < 0)
		return 0;
	rs_head(&event.head, RS_EVENT_SOCKET, sizeof(event), regs->scope);
	event.fd = (s32)regs->result;
	event.family = (u32)regs->a[0];
	event.socket_type = (u32)regs->a[1];
	event.protocol = (u32)regs->a[2];
	rs_emit(&event, sizeof(event), regs->scope, RS_LOSS_NETWORK);
	return 0;
}

/* Bytes were sent through a socket. */
RS_FN int rs_on_send(struct rs_regs *regs)
{
	struct rs_conn_key key = {};
	struct rs_sent sent = {};
	u64 name = 0, flags = 0;
	u32 *kind, name_len = 0, what = 0, seen;

	if (!regs)
		return 0;
	sent.bytes = (u64)regs->result;
	switch (regs->id) {
	case RS_CALL_WRITE:
		sent.data = regs->a[1];
		break;
	case RS_CALL_WRITEV:
		sent.vector = regs->a[1];
		sent.pieces = regs->a[2];
		break;
	case RS_CALL_SENDTO:
		sent.data = regs->a[1];
		flags = regs->a[3];
		name = regs->a[4];
		name_len = (u32)regs->a[5];
		break;
	case RS_CALL_SENDMSG:
	case RS_CALL_SENDMMSG: /* the first message */
		name = rs_user_word(regs->a[1], 0, regs->compat);
		name_len = (u32)rs_user_word(regs->a[1], 1, regs->compat);
		sent.vector = rs_user_word(regs->a[1], 2, regs->compat);
		sent.pieces = rs_user_word(regs->a[1], 3, regs->compat);
		flags = regs->a[2];
		if (regs->id == RS_CALL_SENDMMSG) { /* the result counts messages */
			sent.bytes = RS_PAYLOAD_BYTES;
			flags = regs->a[3];
		}
		break;
	default:
		return 0;
	}
	key.tgid = (u32)(bpf_get_current_pid_tgid() >> 32);
	key.fd = (s32)regs->a[0];
	kind = RS_LOOKUP(rs_conns, &key);
	if (kind)
		what = *kind;
	if (name && name_len) {
		seen = (u32)rs_address(regs, name, name_len);
		if ((seen & 0xffff) == 53)
			what = RS_CONN_DNS;
		else if (seen >> 16 == 1 && (flags & RS_MSG_FASTOPEN))
			what = RS_CONN_STREAM; /* it connected by this */
	}
	if (!what)
		return 0;
	if (what == RS_CONN_STREAM)
		RS_DELETE(rs_conns, &key);
	return rs_first_bytes(regs, &sent, what);
}

/* 32-bit x86 multiplexes the socket calls (linux/net.h). */
RS_FN void rs_socketcall(struct rs_regs *regs)
{
	u32 words[6] = {};
	u64 which;

	if (!regs)
		return;
	which = regs->a[0];
	regs->id = RS_CALL_NONE;
	if (RS_READ_USER(words, sizeof(words), (void *)regs->a[1])) {
		/* Fewer words than six may be mapped; the calls of interest have at least three. */
		if (RS_READ_USER(words, 12, (void *)regs->a[1])) {
			rs_count(regs->scope, RS_LOSS_UNREADABLE);
			return;
		}
	}
	if (which == 1)
		regs->id = RS_CALL_SOCKET;
	else if (which == 2)
		regs->id = RS_CALL_BIND;
	else if (which == 3)
		regs->id = RS_CALL_CONNECT;
	else if (which == 9 || which == 11) /* send, sendto */
		regs->id = RS_CALL_SENDTO;
	else if (which == 16)
		regs->id = RS_CALL_SENDMSG;
	else if (which == 20)
		regs->id = RS_CALL_SENDMMSG;
	if (which == 9) /* has four arguments: no address */
		words[4] = words[5] = 0;
	for (int i = 0; i < 6; i++)
		regs->a[i] = words[i];
}

/* A 32-bit x86 call that a 64-bit program makes otherwise becomes that one. */
RS_FN void rs_compat_call(struct rs_regs *regs)
{
	u32 words[4] = {};

	if (!regs)
		return;
	if (regs->id == RS_CALL_SOCKETCALL) {
		rs_socketcall(regs);
	} else if (regs->id == RS_CALL_TRUNCATE64 || regs->id == RS_CALL_FTRUNCATE64) {
		regs->id = regs->id == RS_CALL_TRUNCATE64 ? RS_CALL_TRUNCATE : RS_CALL_FTRUNCATE;
		regs->a[1] |= regs->a[2] << 32;
	} else if (regs->id == RS_CALL_UMOUNT) {
		regs->id = RS_CALL_UMOUNT2;
		regs->a[1] = 0;
	} else if (regs->id == RS_CALL_OLD_MMAP) {
		regs->id = RS_CALL_MMAP;
		if (RS_READ_USER(words, sizeof(words), (void *)regs->a[0])) {
			if (regs->result != -RS_EFAULT)
				rs_count(regs->scope, RS_LOSS_UNREADABLE);
			regs->id = RS_CALL_NONE;
		}
		regs->a[2] = words[2];
		regs->a[3] = words[3];
	}
}
