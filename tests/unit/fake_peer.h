/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who is at the other end of a unix socket: a function of the test's, on a thread of its own. A mock, since a real QEMU
 * or guest agent cannot be had to send garbage, floods, half an answer, or nothing.
 */
#pragma once

#include <json-glib/json-glib.h>

#define FAKE_GREETING                                                                                                  \
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \"package\": \"Debian\"}, "       \
    "\"capabilities\": [\"oob\"]}}\r\n"

typedef struct FakePeer FakePeer;

/** Serves one client, who has connected; the connection is closed when it returns. */
typedef void (*FakePeerFunc)(FakePeer *peer);

struct FakePeer {
    char *directory;
    char *socket; /* its path */
    int listen_fd;
    GThread *thread;
    FakePeerFunc serve;
    gpointer data; /* for serve; not owned, nor to be changed but by whoever gave it */
    int number;    /* for serve; atomic */
    /* The rest is the thread's until fake_peer_stop(). */
    int fd;           /* of the client */
    int received_fd;  /* the last one that came along, owned; or -1 */
    GByteArray *read; /* what has come and was not looked at */
};

/** Listens, and serves one client after the other. */
void fake_peer_start(FakePeer *peer, FakePeerFunc serve, gconstpointer data);

/** Serves those who have connected to the end, and no more: its fields are the caller's. */
void fake_peer_stop(FakePeer *peer);

/** Stops, too. */
void fake_peer_clear(FakePeer *peer);

/* For serve: */

/** Returns: whether all of it was sent. */
gboolean fake_peer_send(FakePeer *peer, const void *data, size_t length);

void fake_peer_say(FakePeer *peer, const char *text);

/** Returns: (transfer full): the next line, without its end; or NULL if the client has gone. */
char *fake_peer_read_line(FakePeer *peer);

/** Until the client goes. */
void fake_peer_wait_end(FakePeer *peer);

/** Returns: the member "id" of a command. */
gint64 fake_command_id(const char *line);

/** Lets a client in as a monitor does. Returns: FALSE if it goes. */
gboolean fake_monitor_enter(FakePeer *peer);
