// SPDX-License-Identifier: Apache-2.0
/*
 * Network calls: socket, connect, bind, sends to a named peer, and the first bytes of a connection.
 *
 * Owns: tracer.peers. Must not: read more of the task's memory than an address and the first
 * RS_TRACE_PAYLOAD_MAX bytes; send one peer of a process again and again.
 *
 *   syscall exit stop ──► here ──NETWORK──► sink; ──connect──► trace_watch.c
 *
 * Privilege: tracer of the task.
 */
#include "trace_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PORT_DNS  53
#define PEERS_MAX 65536u /* beyond it every send is told, which is more, not less */
/* linux/net.h: the calls behind socketcall() */
#define SOCKETCALL_SOCKET   1
#define SOCKETCALL_BIND	    2
#define SOCKETCALL_CONNECT  3
#define SOCKETCALL_SEND	    9
#define SOCKETCALL_SENDTO   11
#define SOCKETCALL_SENDMSG  16
#define SOCKETCALL_SENDMMSG 20

struct net {
	uint8_t call;
	uint32_t type, protocol;
	int fd;
	int64_t result;
	size_t address_length;
	struct sockaddr_storage peer;
	uint8_t payload; /* enum rs_trace_payload */
	size_t payload_length;
	uint8_t data[RS_TRACE_PAYLOAD_MAX];
};

/* Whom a process has sent to: told once. */
struct rs_peer {
	uint32_t process, length;
	struct sockaddr_storage address;
};

static int peer_equal(const void *context, uint32_t entry, const void *key)
{
	return memcmp(&((const struct rs_tracer *)context)->peers[entry], key,
		      sizeof(struct rs_peer)) == 0;
}

static uint64_t peer_rehash(const void *context, uint32_t entry)
{
	return rs_hash_bytes(&((const struct rs_tracer *)context)->peers[entry],
			     sizeof(struct rs_peer), 0);
}

/* Whether this process has sent to this peer before; remembered if not. */
static int known_peer(struct rs_tracer *t, uint32_t process, const struct net *net)
{
	struct rs_peer peer = {.process = process, .length = (uint32_t)net->address_length};
	uint64_t hash;

	memcpy(&peer.address, &net->peer, net->address_length);
	hash = rs_hash_bytes(&peer, sizeof(peer), 0);
	if (rs_index_find(&t->peer_index, hash, peer_equal, t, &peer) != UINT32_MAX)
		return 1;
	if (rs_grow((void **)&t->peers, t->peer_count, &t->peer_capacity, sizeof(peer), PEERS_MAX))
		return 0;
	t->peers[t->peer_count] = peer;
	if (rs_index_add(&t->peer_index, hash, t->peer_count, peer_rehash, t) == 0)
		t->peer_count++;
	return 0;
}

/* socketcall (i386): the arguments are an array of 32-bit words. */
static int unpack_socketcall(struct rs_task *task)
{
	static const struct {
		uint8_t which, count;
		enum rs_call call;
	} calls[] = {
	    {SOCKETCALL_SOCKET, 3, RS_CALL_socket},	{SOCKETCALL_BIND, 3, RS_CALL_bind},
	    {SOCKETCALL_CONNECT, 3, RS_CALL_connect},	{SOCKETCALL_SEND, 4, RS_CALL_sendto},
	    {SOCKETCALL_SENDTO, 6, RS_CALL_sendto},	{SOCKETCALL_SENDMSG, 3, RS_CALL_sendmsg},
	    {SOCKETCALL_SENDMMSG, 4, RS_CALL_sendmmsg},
	};
	uint32_t words[6] = {0};

	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		size_t size = calls[i].count * sizeof(words[0]);

		if (calls[i].which != task->args[0])
			continue;
		if (rs_read_memory(task->tid, task->args[1], words, size) != (ssize_t)size)
			return 0;
		task->call = calls[i].call;
		for (size_t k = 0; k < 6; k++)
			task->args[k] = words[k];
		return 1;
	}
	return 0;
}

/* Type and protocol of a descriptor of the task, asked from the socket itself; 0 if it is one. */
static int ask_socket(struct rs_process *process, struct net *net)
{
	int fd = rs_process_fd(process, net->fd), result;
	socklen_t size = sizeof(net->type);

	if (fd < 0)
		return fd;
	result = getsockopt(fd, SOL_SOCKET, SO_TYPE, &net->type, &size) < 0 ? -errno : 0;
	size = sizeof(net->protocol);
	(void)getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &net->protocol, &size);
	close(fd);
	return result;
}

static int is_internet(const struct net *net)
{
	return net->address_length >= 4 &&
	       (net->peer.ss_family == AF_INET || net->peer.ss_family == AF_INET6);
}

static int is_dns(const struct net *net)
{
	struct sockaddr_in in;

	memcpy(&in, &net->peer, sizeof(in)); /* the port is at the same place in both families */
	return is_internet(net) && ntohs(in.sin_port) == PORT_DNS;
}

static void send_net(struct rs_tracer *t, uint32_t process, const struct net *net)
{
	uint8_t head[2] = {net->call, net->payload};

	rs_begin(t);
	rs_put32(t, process);
	rs_put_bytes(t, head, sizeof(head));
	rs_put16(t, net->peer.ss_family);
	rs_put32(t, net->type);
	rs_put32(t, net->protocol);
	rs_put32(t, (uint32_t)net->fd);
	rs_put32(t, (uint32_t)(net->result < 0 ? net->result : 0));
	rs_put64(t, rs_now_ns());
	rs_put16(t, (uint16_t)net->address_length);
	rs_put16(t, (uint16_t)net->payload_length);
	rs_put_bytes(t, &net->peer, net->address_length);
	rs_put_bytes(t, net->data, net->payload_length);
	rs_end(t, RS_TRACE_NETWORK);
}

/* Read a socket address of the task; 0 if there is none. */
static int take_address(struct rs_tracer *t, struct rs_task *task, struct net *net,
			uint64_t address, uint64_t length)
{
	net->address_length = length > sizeof(net->peer) ? sizeof(net->peer) : (size_t)length;
	if (address != 0 && net->address_length >= sizeof(net->peer.ss_family)) {
		if (rs_read_memory(task->tid, address, &net->peer, net->address_length) ==
		    (ssize_t)net->address_length)
			return 1;
		if (net->result >= 0)
			rs_lost(t, RS_TRACE_LOSS_ARGUMENT, rs_process_of(t, task)->number,
				rs_trace_call_name(task->call));
	}
	net->address_length = 0;
	return 0;
}

static void socket_made(struct rs_tracer *t, struct rs_task *task, int64_t result)
{
	struct net net = {.call = RS_TRACE_NET_SOCKET, .fd = (int)result};

	if (result < 0)
		return;
	net.peer.ss_family = (sa_family_t)task->args[0];
	net.type = (uint32_t)task->args[1] & 0xf; /* without SOCK_CLOEXEC, SOCK_NONBLOCK */
	net.protocol = (uint32_t)task->args[2];
	send_net(t, rs_process_of(t, task)->number, &net);
}

static void connected(struct rs_tracer *t, struct rs_task *task, int64_t result)
{
	struct rs_process *process = rs_process_of(t, task);
	struct net net = {.fd = (int)task->args[0], .result = result};
	int binds = task->call == RS_CALL_bind;

	if (!take_address(t, task, &net, task->args[1], (uint32_t)task->args[2]))
		return;
	net.call = binds ? RS_TRACE_NET_BIND : RS_TRACE_NET_CONNECT;
	(void)ask_socket(process, &net);
	send_net(t, process->number, &net);
	if (binds || !is_internet(&net) || (result < 0 && result != -EINPROGRESS))
		return;
	if (is_dns(&net))
		rs_watch_add(process, net.fd, RS_TRACE_PAYLOAD_DNS);
	else if (net.type == SOCK_STREAM)
		rs_watch_add(process, net.fd, RS_TRACE_PAYLOAD_STREAM);
}

void rs_net_done(struct rs_tracer *t, struct rs_task *task, int64_t result)
{
	if (task->call == RS_CALL_socketcall && !unpack_socketcall(task))
		return;
	switch (task->call) {
	case RS_CALL_socket:
		return socket_made(t, task, result);
	case RS_CALL_connect:
	case RS_CALL_bind:
		return connected(t, task, result);
	default:
		return rs_send_done(t, task, result);
	}
}

#define PIECES_MAX 4u /* of a vector; a name lies in the first */

/* What was sent (one piece, or an array of struct iovec), and its peer's name. */
struct sent {
	uint64_t data, vector, pieces, bytes;
	uint64_t name, name_length, flags;
};

static uint64_t word_at(const struct rs_task *task, uint64_t address, unsigned int index)
{
	uint64_t wide = 0;
	size_t size = task->arch == RS_ARCH_NATIVE ? sizeof(uint64_t) : sizeof(uint32_t);

	if (rs_read_memory(task->tid, address + index * size, &wide, size) != (ssize_t)size)
		return 0;
	return wide;
}

static struct sent sent_by(const struct rs_task *task, int64_t result)
{
	const uint64_t *a = task->args;
	struct sent sent = {.bytes = (uint64_t)result};

	switch (task->call) {
	case RS_CALL_writev:
		sent.vector = a[1];
		sent.pieces = a[2];
		break;
	case RS_CALL_sendmsg:
	case RS_CALL_sendmmsg: /* struct msghdr, of the first message if many */
		sent.name = word_at(task, a[1], 0);
		sent.name_length = (uint32_t)word_at(task, a[1], 1);
		sent.vector = word_at(task, a[1], 2);
		sent.pieces = word_at(task, a[1], 3);
		sent.flags = a[2];
		if (task->call == RS_CALL_sendmmsg) { /* the result counts messages */
			sent.bytes = RS_TRACE_PAYLOAD_MAX;
			sent.flags = a[3];
		}
		break;
	case RS_CALL_sendto:
		sent.name = a[4];
		sent.name_length = (uint32_t)a[5];
		sent.flags = a[3];
		/* fall through */
	default:
		sent.data = a[1];
	}
	return sent;
}

/* Append a piece of what was sent, as far as there is room. */
static void take_piece(const struct rs_task *task, struct net *net, uint64_t address, uint64_t size)
{
	size_t room = sizeof(net->data) - net->payload_length;
	size_t wanted = size < room ? (size_t)size : room;

	/* Changed by another thread: only the name is lost. */
	if (rs_read_memory(task->tid, address, net->data + net->payload_length, wanted) ==
	    (ssize_t)wanted)
		net->payload_length += wanted;
}

static void take_payload(const struct rs_task *task, struct net *net, const struct sent *sent)
{
	uint64_t left = sent->bytes;

	if (sent->vector == 0)
		return take_piece(task, net, sent->data, left);
	for (unsigned int i = 0; i < PIECES_MAX && i < sent->pieces; i++) {
		uint64_t size = word_at(task, sent->vector, 2 * i + 1);

		size = size < left ? size : left;
		left -= size;
		take_piece(task, net, word_at(task, sent->vector, 2 * i), size);
	}
}

static uint8_t call_of_send(enum rs_call call)
{
	switch (call) {
	case RS_CALL_write:
		return RS_TRACE_NET_WRITE;
	case RS_CALL_writev:
		return RS_TRACE_NET_WRITEV;
	case RS_CALL_sendmsg:
		return RS_TRACE_NET_SENDMSG;
	case RS_CALL_sendmmsg:
		return RS_TRACE_NET_SENDMMSG;
	default:
		return RS_TRACE_NET_SENDTO;
	}
}

/* What the bytes are that went through a socket, from the call that sent them. */
static uint8_t payload_of(struct rs_process *process, const struct net *net, int named,
			  uint64_t flags)
{
	if (named && is_dns(net))
		return RS_TRACE_PAYLOAD_DNS;
	if (named && is_internet(net) && flags & MSG_FASTOPEN) /* it connected by this */
		return RS_TRACE_PAYLOAD_STREAM;
	return rs_watch_take(process, net->fd);
}

void rs_send_done(struct rs_tracer *t, struct rs_task *task, int64_t result)
{
	struct rs_process *process = rs_process_of(t, task);
	struct net net = {.call = call_of_send(task->call), .result = result};
	struct sent sent = sent_by(task, result);
	int named;

	net.fd = (int)task->args[0];
	named = take_address(t, task, &net, sent.name, sent.name_length);
	if (result > 0)
		net.payload = payload_of(process, &net, named, sent.flags);
	if (net.payload == RS_TRACE_PAYLOAD_NONE) {
		if (named && !known_peer(t, process->number, &net)) {
			(void)ask_socket(process, &net);
			send_net(t, process->number, &net);
		}
		return;
	}
	if (ask_socket(process, &net) == -ENOTSOCK)
		return; /* another thread has exchanged the descriptor for a file's */
	take_payload(task, &net, &sent);
	send_net(t, process->number, &net);
}
