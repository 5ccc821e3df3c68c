/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Numbers of bytes as people write them. */
#pragma once

#include <glib.h>
#include <stdint.h>

/**
 * vmsnap_size_parse:
 * @text: digits, and one of the suffixes K, M, G and T of powers of 1024 (in either case) or none
 *
 * Returns: FALSE if @text is anything else, or too large.
 */
gboolean vmsnap_size_parse(const char *text, uint64_t *ret_bytes);
