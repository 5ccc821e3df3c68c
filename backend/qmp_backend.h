/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Machines of a QEMU without libvirt, over its monitor. */
#pragma once

#include "vmsnap/backend.h"

/** What a source begins with; the path of the monitor's socket follows. */
#define VMSNAP_QMP_SCHEME "qmp:"

extern const VmsnapBackend vmsnap_qmp_backend;
