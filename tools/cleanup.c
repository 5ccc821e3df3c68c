/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cleanup.h"

#include "mount_point.h"
#include "report.h"
#include "utab.h"
#include "vmsnap/backend.h"

#include <stdlib.h>
#include <unistd.h>

gboolean vmsnap_cleanup_record(int fd, VmsnapRecord *record, GError **error) {
    if (record->mount_point) {
        vmsnap_mount_point_clear_dead(record->mount_point);
        /* After a lazy unmount, somebody else may have mounted there. */
        if (!vmsnap_mount_point_is_vmsnap(record->mount_point))
            vmsnap_utab_remove(record->mount_point);
    }
    return vmsnap_snapshot_recover(fd, record, error);
}

static gboolean dead_clear(int fd, VmsnapRecord *record, gpointer user_data, GError **error) {
    (void)user_data;
    if (!vmsnap_cleanup_record(fd, record, error))
        return FALSE;
    g_message("cleared what a dead mount of '%s' on '%s' had left", record->machine, record->mount_point);
    return TRUE;
}

gboolean vmsnap_cleanup_dead(const char *machine, const char *mount_point, GError **error) {
    return vmsnap_record_visit_dead(machine, mount_point, dead_clear, NULL, error);
}

int vmsnap_cleanup_main(const char *machine) {
    g_autoptr(GError) error = NULL;
    if (vmsnap_cleanup_dead(machine, NULL, &error) &&
        (machine ? vmsnap_record_machine_is_free(machine, machine, &error) : vmsnap_scratch_sweep(&error)))
        return EXIT_SUCCESS;
    return vmsnap_report_error(error);
}
