/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The backend for exports of NBD servers that somebody else has begun. */
#pragma once

#include "vmsnap/backend.h"

extern const VmsnapBackend vmsnap_export_backend;
