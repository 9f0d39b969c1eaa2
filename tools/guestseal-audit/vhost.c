// SPDX-License-Identifier: GPL-2.0-only
/* A device that does DMA, in the kernel: vhost-net, with the guest's pages as packets. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/vhost.h>
#include <linux/virtio_ring.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "audit.h"

#define RING 8
#define PAYLOAD 1024
#define OWN_TYPE 0x88b5 /* of packets for experiments */

enum { RECEIVE, TRANSMIT };

/* What the VMM has for a driver's: GPA 0 and up. */
struct rings {
	struct vring_desc desc[RING];
	struct {
		struct vring_avail head;
		__virtio16 ring[RING];
	} avail;
	struct {
		struct vring_used head __attribute__((aligned(4)));
		struct vring_used_elem ring[RING];
	} used;
	struct {
		char net[10]; /* virtio's header, all zeros */
		struct ethhdr ethernet;
	} __attribute__((packed)) header;
};

static struct {
	int tap, wire, net, kick;
	struct sockaddr_ll address;
	struct rings *rings;
} nic;

/* A tap device, and what sees and sends packets there */
static bool make_tap(void)
{
	struct ifreq request = {
		.ifr_name = "gsaudit%d",
		.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
	};

	nic.tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	nic.wire = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(OWN_TYPE));
	if (nic.tap < 0 || nic.wire < 0 || ioctl(nic.tap, TUNSETIFF, &request))
		return false;
	nic.address = (struct sockaddr_ll){
		.sll_family = AF_PACKET,
		.sll_protocol = htons(OWN_TYPE),
		.sll_ifindex = if_nametoindex(request.ifr_name),
	};
	request.ifr_flags = IFF_UP | IFF_RUNNING | IFF_NOARP;
	return !ioctl(nic.wire, SIOCSIFFLAGS, &request) &&
	       !bind(nic.wire, (struct sockaddr *)&nic.address, sizeof(nic.address));
}

static bool set_memory(struct target *target)
{
	struct {
		struct vhost_memory head;
		struct vhost_memory_region regions[2];
	} memory = {
		.head = { .nregions = 2 },
		.regions = {
			{ .memory_size = sizeof(*nic.rings), .userspace_addr = (unsigned long)nic.rings },
			{ .guest_phys_addr = MEMORY_GPA, .memory_size = target->size,
			  .userspace_addr = (unsigned long)MEMORY },
		},
	};

	return !ioctl(nic.net, VHOST_SET_MEM_TABLE, &memory);
}

/* Start the queue, of which the first descriptors are set up, with a single request. */
static bool start_queue(unsigned int queue)
{
	struct vhost_vring_state size = { queue, RING }, base = { queue, 0 };
	struct vhost_vring_addr rings = {
		.index = queue,
		.desc_user_addr = (unsigned long)nic.rings->desc,
		.avail_user_addr = (unsigned long)&nic.rings->avail,
		.used_user_addr = (unsigned long)&nic.rings->used,
	};
	struct vhost_vring_file kick = { queue, nic.kick }, backend = { queue, nic.tap };

	nic.rings->avail.head.idx = 1;
	return !ioctl(nic.net, VHOST_SET_VRING_NUM, &size) &&
	       !ioctl(nic.net, VHOST_SET_VRING_BASE, &base) &&
	       !ioctl(nic.net, VHOST_SET_VRING_ADDR, &rings) &&
	       !ioctl(nic.net, VHOST_SET_VRING_KICK, &kick) &&
	       !ioctl(nic.net, VHOST_NET_SET_BACKEND, &backend) && !eventfd_write(nic.kick, 1);
}

/* DONE, or why there's none */
static enum outcome make_nic(struct target *target)
{
	unsigned long features = 0;

	nic.net = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);
	if (nic.net < 0)
		return ended(target, LACKING, "no /dev/vhost-net: %s", strerror(errno));
	if (!make_tap())
		return ended(target, LACKING, "no tap device: %s", strerror(errno));
	nic.kick = eventfd(0, EFD_CLOEXEC);
	nic.rings = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (ioctl(nic.net, VHOST_SET_OWNER) || ioctl(nic.net, VHOST_SET_FEATURES, &features) ||
	    !set_memory(target))
		return ended(target, BROKEN, "vhost: %s", strerror(errno));
	return DONE;
}

/* The guest's page is sent as a packet. */
static enum outcome transmit(struct target *target, const struct attack *attack)
{
	char packet[ETH_HLEN + 2 + PAYLOAD];
	struct pollfd wire = { .events = POLLIN };
	ssize_t got;

	(void)attack;
	if (make_nic(target) != DONE)
		return target->result->outcome;
	nic.rings->header.ethernet = (struct ethhdr){
		.h_dest = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff },
		.h_source = { 2 },
		.h_proto = htons(OWN_TYPE),
	};
	nic.rings->desc[0] = (struct vring_desc){
		.addr = offsetof(struct rings, header),
		.len = sizeof(nic.rings->header),
		.flags = VRING_DESC_F_NEXT,
		.next = 1,
	};
	nic.rings->desc[1] = (struct vring_desc){
		.addr = MEMORY_GPA + target->offset,
		.len = PAYLOAD,
	};
	wire.fd = nic.wire;
	if (!start_queue(TRANSMIT))
		return refused(target, "vhost");
	if (poll(&wire, 1, 10000) != 1)
		return ended(target, REFUSED, "no packet came");
	/* So that the words are aligned where has_secret() looks for them. */
	got = read(nic.wire, packet + 2, sizeof(packet) - 2);
	return looked(target, "read", got < 0 ? -1 : got + 2, packet);
}

/* A packet is received where the guest's page is. */
static enum outcome receive(struct target *target, const struct attack *attack)
{
	struct ethhdr packet[8] = { { .h_source = { 2 }, .h_proto = htons(OWN_TYPE) } };
	int tries;

	(void)attack;
	if (make_nic(target) != DONE)
		return target->result->outcome;
	nic.rings->desc[0] = (struct vring_desc){
		.addr = MEMORY_GPA + target->offset,
		.len = 2048,
		.flags = VRING_DESC_F_WRITE,
	};
	if (!start_queue(RECEIVE))
		return refused(target, "vhost");
	if (sendto(nic.wire, packet, sizeof(packet), 0, (struct sockaddr *)&nic.address,
		   sizeof(nic.address)) < 0)
		return ended(target, BROKEN, "no packet sent: %s", strerror(errno));
	for (tries = 0; tries < 1000; tries++) {
		if (__atomic_load_n(&nic.rings->used.head.idx, __ATOMIC_ACQUIRE))
			return ended(target, DONE, "received where the guest does not see it");
		usleep(10000);
	}
	return ended(target, REFUSED, "no packet was received");
}

/* clang-format off */
static const struct attack attacks[] = {
	{ .name = "vhost-net, transmit", .what = "a private page as a packet that vhost-net sends",
	  .run = transmit, .wants = SEEN, .flags = AS_VMM },
	{ .name = "vhost-net, receive", .what = "a packet that vhost-net receives to a private page",
	  .run = receive, .wants = CHANGED, .flags = AS_VMM },
};
/* clang-format on */

const struct group device_group = GROUP("memfd", "device", "by DMA of a device's", attacks);
