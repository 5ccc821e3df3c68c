/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What tests of NBD share: nbdkit or qemu-nbd, a pool that is connected to it, and what is asked of it. */
#pragma once

#include "backend/nbd_pool.h"
#include "latch.h"

#define START_TIMEOUT_S 20
#define CONNECT_TIMEOUT_MS 20000
#define MAX_READ_BYTES ((size_t)1 << 20)

typedef struct {
    char *directory; /* of the socket, and of whatever a test puts there */
    char *socket;
    unsigned port; /* of one that listens on 127.0.0.1 */
    GPid pid;
} Server;

char *server_path(const Server *server, const char *name);

void server_init(Server *server);

/** Starts nbdkit with @words, which are split at blanks, and waits until it listens. */
void server_run(Server *server, const char *words);

/** The same on a port of 127.0.0.1. */
void server_run_tcp(Server *server, const char *words);

/**
 * server_run_qemu:
 * @image: a qcow2 file in the server's directory
 * @bitmap: of the image, which is disabled, to export; or NULL
 *
 * Starts qemu-nbd, read-only, and waits until it listens.
 */
void server_run_qemu(Server *server, const char *image, const char *bitmap);

/** Runs a program with words that are split at blanks, and in which tabs become blanks, in the server's directory, to
 * its good end. */
void server_call(const Server *server, const char *words);

/** Both of these. */
void server_start(Server *server, const char *words);

gboolean server_has_ended(const Server *server);

void server_kill(Server *server);

void server_clear(Server *server);

typedef struct {
    VmsnapSnapshot snapshot;
    VmsnapIoThreads *threads;
    VmsnapNbdServer *server;
    VmsnapNbdPool *pool;
} Client;

void client_open(Client *client, const Server *server, guint max_connections);

/**
 * client_open_within:
 * @where: the path of a socket of ours, or a URI
 *
 * Leaves it to the caller to start the threads. A busy machine may need more than one try to connect so soon.
 */
void client_open_within(Client *client, const char *where, guint max_connections, unsigned timeout_ms);

gboolean client_is_broken(const Client *client);

/** Waits until the snapshot is broken for a reason with the words @said. */
void client_wait_broken(Client *client, const char *said);

/** As client_open(), of an export that tells what has changed. */
void client_open_bitmap(Client *client, const char *socket, const char *bitmap, guint max_connections);

/** In the order in which a backend ends. */
void client_stop(Client *client);

void client_clear(Client *client);

/** One read or question, and all that came of it. */
typedef struct {
    Client *client;
    Latch called;
    int error;
    gboolean was_broken; /* the snapshot was by then */
    uint8_t *buffer;     /* of a read; owned */
    size_t length;
    uint64_t offset;
    GArray *extents; /* of a question; owned */
} Call;

void call_read(Call *call, Client *client, uint64_t offset, size_t length);

void call_extents(Call *call, Client *client, uint64_t offset, size_t length);

void call_changes(Call *call, Client *client, uint64_t offset, size_t length);

/** It must have been answered once. */
void call_clear(Call *call);

/** Of a read that is done, from nbdkit's pattern plugin. */
void call_check_pattern(const Call *call);

void check_pattern_read(Client *client, uint64_t offset, size_t length);

void check_random_pattern_reads(Client *client, uint64_t size, int n_reads);

/** Returns: with what a read ends. */
int read_error(Client *client, uint64_t offset, size_t length);
