/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* mount.vmsnap: mounts the instant of a running machine. Checks first what can be checked without beginning anything.
 */
#include "cleanup.h"
#include "config.h"
#include "daemon.h"
#include "extra_files.h"
#include "mount_point.h"
#include "report.h"

#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* A caller may have closed them; what is opened next, a socket even, must not take their place. */
static void standard_streams_open(void) {
    int fd;
    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        (void)close(fd);
}

int main(int argc, char **argv) {
    /* A caller who ignores it hands that on, and then the kernel keeps no status of children for waitpid(2). */
    (void)signal(SIGCHLD, SIG_DFL);
    standard_streams_open();
    (void)setlocale(LC_ALL, "");
    g_set_prgname("mount.vmsnap");
    vmsnap_report_to_stderr(G_LOG_LEVEL_WARNING);
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapOptions) options = vmsnap_options_parse(argc, argv, &error);
    if (!options)
        return vmsnap_report_error(error);
    if (options->show_version) {
        (void)printf("mount.vmsnap %s\n", VMSNAP_VERSION);
        return EXIT_SUCCESS;
    }
    gboolean watched = options->foreground || options->cleanup;
    GLogLevelFlags unasked_level = watched ? G_LOG_LEVEL_MESSAGE : G_LOG_LEVEL_WARNING;
    vmsnap_report_to_stderr(options->verbose ? G_LOG_LEVEL_INFO : unasked_level);
    if (options->cleanup)
        return vmsnap_cleanup_main(options->source);
    g_autofree char *mount_point = vmsnap_mount_point_check(options->mount_point, &error);
    if (!mount_point || !vmsnap_mount_point_check_fuse(mount_point, options->allow_other, &error))
        return vmsnap_report_error(error);
    options->config_contents = vmsnap_extra_files_load((const char *const *)options->config_paths, &error);
    if (!options->config_contents)
        return vmsnap_report_error(error);
    if (options->fake)
        return EXIT_SUCCESS;
    return options->foreground ? vmsnap_daemon_run(options, mount_point) : vmsnap_daemon_start(options, mount_point);
}
