/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The files that somebody has open. */
#pragma once

#include "view.h"

/** What one open(2) has of a file: a reader of its layout, or a live file's content as of that moment. */
typedef struct {
    VmsnapReader *reader;
    GBytes *content;
} VmsnapOpenFile;

typedef struct VmsnapOpenFiles VmsnapOpenFiles;

VmsnapOpenFiles *vmsnap_open_files_new(void);

/** Closes what is still open, and frees all; NULL-safe. */
void vmsnap_open_files_free(VmsnapOpenFiles *files);

/** @resources must outlive the file and its reads. Any thread. */
VmsnapOpenFile *vmsnap_open_files_open(VmsnapOpenFiles *files, const VmsnapNode *node,
                                       const VmsnapReaderResources *resources);

/** Frees @file. Any thread. */
void vmsnap_open_files_close(VmsnapOpenFiles *files, VmsnapOpenFile *file);
