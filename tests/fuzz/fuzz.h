/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What libFuzzer calls, by the names that it knows; and what driver.c wants to know beside these. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/** Of the program, as it is called in tests and files. */
extern const char fuzz_name[];

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);
