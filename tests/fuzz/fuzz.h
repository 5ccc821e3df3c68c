/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What libFuzzer calls, by the names that it knows. */
#pragma once

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);
