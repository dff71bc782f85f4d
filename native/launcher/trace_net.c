// SPDX-License-Identifier: Apache-2.0
/*
 * Network calls: socket, connect, bind, and sendto to port 53.
 *
 * Owns: nothing. Must not: read more of the task's memory than an address.
 *
 *   syscall exit stop ──► here ──NETWORK──► sink
 *
 * Privilege: tracer of the task.
 */
#include "trace_internal.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PORT_DNS 53
/* linux/net.h: the calls behind socketcall() */
#define SOCKETCALL_SOCKET  1
#define SOCKETCALL_BIND	   2
#define SOCKETCALL_CONNECT 3
#define SOCKETCALL_SENDTO  11

struct net {
	uint8_t call;
	uint32_t type, protocol;
	int fd;
	uint64_t address;
	size_t address_length;
	struct sockaddr_storage peer;
};

/* socketcall (i386): the arguments are an array of 32-bit words. */
static int unpack_socketcall(const struct rs_task *task, enum rs_call *ret_call, uint64_t args[6])
{
	uint32_t words[6] = {0};
	size_t count = task->args[0] == SOCKETCALL_SENDTO ? 6 : 3;

	switch (task->args[0]) {
	case SOCKETCALL_SOCKET:
		*ret_call = RS_CALL_socket;
		break;
	case SOCKETCALL_BIND:
		*ret_call = RS_CALL_bind;
		break;
	case SOCKETCALL_CONNECT:
		*ret_call = RS_CALL_connect;
		break;
	case SOCKETCALL_SENDTO:
		*ret_call = RS_CALL_sendto;
		break;
	default:
		return 0;
	}
	if (rs_read_memory(task->tid, task->args[1], words, count * sizeof(words[0])) < 0)
		return 0;
	for (size_t i = 0; i < 6; i++)
		args[i] = words[i];
	return 1;
}

/* Family and protocol of a descriptor of the task, asked from the socket itself. */
static void ask_socket(struct rs_process *process, struct net *net)
{
	int fd = rs_process_fd(process, net->fd);
	socklen_t size = sizeof(net->type);

	if (fd < 0)
		return;
	(void)getsockopt(fd, SOL_SOCKET, SO_TYPE, &net->type, &size);
	size = sizeof(net->protocol);
	(void)getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &net->protocol, &size);
	close(fd);
}

static int port_of(const struct sockaddr_storage *address, size_t length)
{
	struct sockaddr_in in;

	if (length < 4 || (address->ss_family != AF_INET && address->ss_family != AF_INET6))
		return -1;
	memcpy(&in, address, sizeof(in)); /* the port is at the same place in both families */
	return ntohs(in.sin_port);
}

static void send_net(struct rs_tracer *t, uint32_t process, const struct net *net, uint16_t family,
		     int64_t result)
{
	uint8_t head[2] = {net->call, 0};

	rs_begin(t);
	rs_put32(t, process);
	rs_put_bytes(t, head, sizeof(head));
	rs_put16(t, family);
	rs_put32(t, net->type);
	rs_put32(t, net->protocol);
	rs_put32(t, (uint32_t)net->fd);
	rs_put32(t, (uint32_t)(result < 0 ? result : 0));
	rs_put64(t, rs_now_ns());
	rs_put16(t, (uint16_t)net->address_length);
	rs_put16(t, 0);
	rs_put_bytes(t, &net->peer, net->address_length);
	rs_end(t, RS_TRACE_NETWORK);
}

void rs_net_done(struct rs_tracer *t, struct rs_task *task, int64_t result)
{
	struct rs_process *process = rs_process_of(t, task);
	enum rs_call call = task->call;
	struct net net = {.fd = -1};
	uint64_t args[6];

	memcpy(args, task->args, sizeof(args));
	if (call == RS_CALL_socketcall && !unpack_socketcall(task, &call, args))
		return;
	if (call == RS_CALL_socket) {
		net.call = RS_TRACE_NET_SOCKET;
		net.fd = result < 0 ? -1 : (int)result;
		net.type = (uint32_t)args[1] & 0xf; /* without SOCK_CLOEXEC, SOCK_NONBLOCK */
		net.protocol = (uint32_t)args[2];
		send_net(t, process->number, &net, (uint16_t)args[0], result);
		return;
	}
	net.fd = (int)args[0];
	net.address = call == RS_CALL_sendto ? args[4] : args[1];
	net.address_length = (size_t)(call == RS_CALL_sendto ? args[5] : args[2]);
	if (net.address_length > sizeof(net.peer))
		net.address_length = sizeof(net.peer);
	if (net.address == 0 || net.address_length < sizeof(net.peer.ss_family))
		return;
	if (rs_read_memory(task->tid, net.address, &net.peer, net.address_length) !=
	    (ssize_t)net.address_length) {
		if (result >= 0)
			rs_lost(t, RS_TRACE_LOSS_ARGUMENT, process->number,
				rs_trace_call_name(call));
		return;
	}
	if (call == RS_CALL_sendto && port_of(&net.peer, net.address_length) != PORT_DNS)
		return;
	net.call = call == RS_CALL_connect ? RS_TRACE_NET_CONNECT
		   : call == RS_CALL_bind  ? RS_TRACE_NET_BIND
					   : RS_TRACE_NET_SENDTO;
	ask_socket(process, &net);
	send_net(t, process->number, &net, net.peer.ss_family, result);
}
