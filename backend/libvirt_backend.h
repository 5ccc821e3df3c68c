/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The backend for libvirt domains. */
#pragma once

#include "vmsnap/backend.h"

extern const VmsnapBackend vmsnap_libvirt_backend;
