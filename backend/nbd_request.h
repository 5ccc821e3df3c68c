/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One read, question for extents or discard: what is asked of libnbd, and what is made of the answer. It knows no
 * connection and takes no lock: whoever has the handle that it is sent with serializes all calls but new.
 */
#pragma once

#include "nbd_handle.h"
#include "vmsnap/backend.h"

typedef struct VmsnapNbdRequest VmsnapNbdRequest;

typedef enum {
    VMSNAP_NBD_ANSWER_GOOD,  /* the request is to be finished with success */
    VMSNAP_NBD_ANSWER_ERROR, /* the server's error, or an answer that makes no sense */
    VMSNAP_NBD_ANSWER_AGAIN, /* of no use, but there is another way to ask: the request is to be sent once more */
    VMSNAP_NBD_ANSWER_LOST,  /* none, since the connection is lost: the request may be reset and sent with another */
} VmsnapNbdAnswer;

/** Told once each time that a request has been sent: inside vmsnap_nbd_request_send(), or while the handle receives. */
typedef void (*VmsnapNbdAnswerFunc)(VmsnapNbdRequest *request, VmsnapNbdAnswer answer, gpointer owner);

struct VmsnapNbdRequest {
    GList link; /* for a list of the owner's; its data is the request */
    gpointer owner;
    VmsnapNbdAnswerFunc answered;
    const VmsnapNbdExport *export;
    uint64_t number;       /* the owner's: each time that it is sent, another one */
    gint64 interrupted_us; /* the owner's: when the first connection was lost that it had been sent with, or 0 */

    gboolean is_discard;
    void *buffer;            /* of a read; NULL in all others */
    uint8_t *aligned_buffer; /* owned; where the server wants blocks and the range is not made of them */
    size_t length;
    uint64_t offset;
    uint64_t received_bytes; /* of a read, without a gap from its beginning */
    gboolean unfragmented;   /* asked for in one piece, after the server has sent pieces out of order, or too few */
    GArray *extents;         /* of VmsnapExtent, owned; NULL in a read */
    uint64_t told_bytes;     /* how far the extents reach */
    gboolean *told;          /* while it is being sent: set when libnbd completes it already */
    VmsnapDoneFunc done;     /* NULL in a question for extents */
    VmsnapExtentsFunc extents_done;
    gpointer user_data;
};

/** As vmsnap_disk_read(). The caller sets owner, answered and export. */
VmsnapNbdRequest *vmsnap_nbd_request_new_read(void *buffer, size_t length, uint64_t offset, VmsnapDoneFunc done,
                                              gpointer user_data);

/** As vmsnap_disk_release(). The caller sets owner, answered and export. */
VmsnapNbdRequest *vmsnap_nbd_request_new_discard(uint64_t offset, uint64_t length, VmsnapDoneFunc done,
                                                 gpointer user_data);

/** As vmsnap_disk_extents(). The caller sets owner, answered and export. */
VmsnapNbdRequest *vmsnap_nbd_request_new_extents(uint64_t offset, uint64_t length, VmsnapExtentsFunc done,
                                                 gpointer user_data);

/** Sends it. Returns: FALSE if libnbd refuses it: then nothing was told, and the request is as before. */
gboolean vmsnap_nbd_request_send(VmsnapNbdRequest *request, struct nbd_handle *nbd);

/** Forgets what came of an answer, so that it can be sent once more. The handle before must be closed. */
void vmsnap_nbd_request_reset(VmsnapNbdRequest *request);

/** Tells the user and frees the request. @error: 0, or -errno */
void vmsnap_nbd_request_finish(VmsnapNbdRequest *request, int error);
