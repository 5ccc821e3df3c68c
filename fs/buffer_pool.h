/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A bounded number of large buffers of one size, used again and again. */
#pragma once

#include <glib.h>
#include <stdint.h>

typedef struct VmsnapBufferPool VmsnapBufferPool;

/** Called once with a buffer (transfer full), before or after the call that asked returns. Must not block. */
typedef void (*VmsnapBufferFunc)(uint8_t *buffer, gpointer user_data);

/** Returns: a pool of at most @max_buffers buffers of up to 2 MiB, for which memory is allocated as it is needed. */
VmsnapBufferPool *vmsnap_buffer_pool_new(size_t buffer_bytes, guint max_buffers);

/** Frees a pool to which all buffers have been given back; NULL-safe. */
void vmsnap_buffer_pool_free(VmsnapBufferPool *pool);

/** Returns: how large each buffer is. */
size_t vmsnap_buffer_pool_get_buffer_bytes(const VmsnapBufferPool *pool);

/**
 * vmsnap_buffer_pool_try_take:
 * @n_held: how many buffers the caller has already
 *
 * Returns: (transfer full): a buffer, or NULL unless more are left than the caller has. So whoever comes late still
 * finds some, and all who take as many as they can end up with about as many. Any thread.
 */
uint8_t *vmsnap_buffer_pool_try_take(VmsnapBufferPool *pool, guint n_held);

/** Calls @func when there is a buffer; those who wait get one in the order in which they came. Any thread. */
void vmsnap_buffer_pool_take(VmsnapBufferPool *pool, VmsnapBufferFunc func, gpointer user_data);

/** Gives a buffer back, to who waits longest; NULL-safe. Any thread. */
void vmsnap_buffer_pool_give(VmsnapBufferPool *pool, uint8_t *buffer);
