/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Arithmetic and byte order that computed formats share. */
#pragma once

#include <glib.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t vmsnap_divide_up(uint64_t dividend, uint64_t divisor) {
    return dividend / divisor + (dividend % divisor != 0);
}

static inline void vmsnap_put_be16(uint8_t *target, uint16_t value) {
    value = GUINT16_TO_BE(value);
    memcpy(target, &value, sizeof value);
}

static inline void vmsnap_put_be32(uint8_t *target, uint32_t value) {
    value = GUINT32_TO_BE(value);
    memcpy(target, &value, sizeof value);
}

static inline void vmsnap_put_be64(uint8_t *target, uint64_t value) {
    value = GUINT64_TO_BE(value);
    memcpy(target, &value, sizeof value);
}
