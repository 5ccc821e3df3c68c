/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the tools tell people: one line on stderr, and mount(8)'s exit codes. */
#pragma once

#include <glib.h>

#define VMSNAP_EXIT_USAGE 1
#define VMSNAP_EXIT_SYSTEM 2
#define VMSNAP_EXIT_FAILED 32

/** Prints @error and returns the exit code that it stands for. */
int vmsnap_report_error(const GError *error);

/** Writes log messages to stderr from now on, each as one line. */
void vmsnap_report_to_stderr(void);

/** Sends log messages to syslog from now on. */
void vmsnap_report_to_syslog(void);
