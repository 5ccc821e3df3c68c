/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the tools tell people: one line on stderr, and mount(8)'s exit codes. */
#pragma once

#include <glib.h>

#define VMSNAP_EXIT_USAGE 1
#define VMSNAP_EXIT_SYSTEM 2
#define VMSNAP_EXIT_FAILED 32

/** Prints @error and returns the exit code that it stands for. */
int vmsnap_report_error(const GError *error);

/**
 * vmsnap_report_to_stderr:
 * @level: the least that is written: what is below is for the log
 *
 * Writes log messages to stderr from now on, each as one line.
 */
void vmsnap_report_to_stderr(GLogLevelFlags level);

/**
 * vmsnap_report_set_subject:
 *
 * Says which snapshot, of which machine and on which mount point, messages in the log are about from now on. Must be
 * called before there are threads that might log.
 */
void vmsnap_report_set_subject(const char *uuid, const char *machine, const char *mount_point);

/**
 * vmsnap_report_detach:
 *
 * Leaves the caller: its session, its directory and its streams. Log messages go to syslog from now on.
 */
void vmsnap_report_detach(void);
