/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Drives out of what QEMU 7.2 tells of them, cut down to what is read, and out of what no QEMU tells. */
#include "backend/qmp_machine.h"

#include "json_mutations.h"

#include <string.h>

/* -drive if=virtio,id=drv0 */
#define BLOCK_DRIVE                                                                                                    \
    "{\"io-status\": \"ok\", \"device\": \"drv0\", \"locked\": false, \"removable\": false, \"inserted\": "            \
    "{\"image\": {\"virtual-size\": 67108864, \"filename\": \"/d/b.qcow2\", \"format\": \"qcow2\"}, \"ro\": false, "   \
    "\"node-name\": \"#block1036\", \"backing_file_depth\": 0, \"drv\": \"qcow2\", \"file\": \"/d/b.qcow2\"}, "        \
    "\"qdev\": \"/machine/peripheral-anon/device[2]/virtio-backend\", \"type\": \"unknown\"}"
/* -drive if=none,id=drv1 -device virtio-blk-pci,drive=drv1,id=named */
#define BLOCK_NAMED                                                                                                    \
    "{\"device\": \"drv1\", \"inserted\": {\"image\": {\"virtual-size\": 1024}, \"ro\": false, \"node-name\": "        \
    "\"#block1278\", \"file\": \"c.qcow2\"}, \"qdev\": \"/machine/peripheral/named/virtio-backend\"}"
/* -blockdev node-name=n0 -device virtio-blk-pci,drive=n0,id=vda, over a chain of three images */
#define BLOCK_CHAIN                                                                                                    \
    "{\"device\": \"\", \"inserted\": {\"image\": {\"virtual-size\": 4096, \"backing-image\": {\"virtual-size\": "     \
    "1, \"backing-image\": {\"virtual-size\": 2}}, \"backing-filename\": \"ch1.qcow2\"}, \"ro\": false, "              \
    "\"node-name\": \"n0\", \"backing_file_depth\": 2, \"backing_file\": \"ch1.qcow2\", \"file\": \"ch2.qcow2\"}, "    \
    "\"qdev\": \"/machine/peripheral/vda/virtio-backend\"}"
/* -device scsi-hd,drive=n1,id=sda */
#define BLOCK_SCSI                                                                                                     \
    "{\"device\": \"\", \"inserted\": {\"image\": {\"virtual-size\": 67108864}, \"ro\": false, \"node-name\": "        \
    "\"n1\", \"file\": \"d.qcow2\"}, \"qdev\": \"sda\"}"
/* -device ide-hd,drive=n2 */
#define BLOCK_IDE                                                                                                      \
    "{\"device\": \"\", \"inserted\": {\"image\": {\"virtual-size\": 67108864}, \"ro\": false, \"node-name\": "        \
    "\"n2\", \"file\": \"e.qcow2\"}, \"qdev\": \"/machine/peripheral-anon/device[0]\"}"
/* -device ide-cd,id=cd0 */
#define BLOCK_EMPTY_CD                                                                                                 \
    "{\"io-status\": \"ok\", \"device\": \"\", \"locked\": false, \"removable\": true, \"qdev\": \"cd0\", "            \
    "\"tray_open\": false, \"type\": \"unknown\"}"
/* -drive if=none,id=cd1,media=cdrom -device scsi-cd,drive=cd1 */
#define BLOCK_CD                                                                                                       \
    "{\"device\": \"cd1\", \"inserted\": {\"image\": {\"virtual-size\": 1048576}, \"ro\": true, \"node-name\": "       \
    "\"#block1458\", \"file\": \"cd.iso\"}, \"qdev\": \"/machine/peripheral-anon/device[1]\"}"
/* -device nvme,drive=n3,id=nv */
#define BLOCK_NVME                                                                                                     \
    "{\"device\": \"\", \"inserted\": {\"image\": {\"virtual-size\": 67108864}, \"ro\": false, \"node-name\": "        \
    "\"n3\", \"file\": \"f.qcow2\"}, \"qdev\": \"nv\"}"
/* -blockdev node-name=n4,read-only=on -device virtio-blk-pci,drive=n4,id=ro */
#define BLOCK_READ_ONLY                                                                                                \
    "{\"device\": \"\", \"inserted\": {\"image\": {\"virtual-size\": 67108864}, \"ro\": true, \"node-name\": "         \
    "\"n4\", \"file\": \"g.qcow2\"}, \"qdev\": \"/machine/peripheral/ro/virtio-backend\"}"
/* -drive if=pflash,readonly=on */
#define BLOCK_PFLASH                                                                                                   \
    "{\"device\": \"pflash0\", \"inserted\": {\"image\": {\"virtual-size\": 4194304}, \"ro\": true, \"node-name\": "   \
    "\"#block1651\", \"file\": \"pf.raw\"}, \"qdev\": \"/machine/system.flash0\"}"
/* -drive if=none,id=unused */
#define BLOCK_UNUSED                                                                                                   \
    "{\"device\": \"unused\", \"inserted\": {\"image\": {\"virtual-size\": 67108864}, \"ro\": false, "                 \
    "\"node-name\": \"#block1837\", \"file\": \"h.qcow2\"}, \"type\": \"unknown\"}"
/* -drive if=none,id=fl -device floppy,drive=fl,id=fd0 */
#define BLOCK_FLOPPY                                                                                                   \
    "{\"device\": \"fl\", \"inserted\": {\"image\": {\"virtual-size\": 1474560}, \"ro\": false, \"node-name\": "       \
    "\"#block2028\", \"file\": \"fl.raw\"}, \"qdev\": \"fd0\"}"
#define BLOCKS                                                                                                         \
    "[" BLOCK_DRIVE "," BLOCK_NAMED "," BLOCK_CD "," BLOCK_PFLASH "," BLOCK_UNUSED "," BLOCK_FLOPPY "," BLOCK_CHAIN    \
    "," BLOCK_SCSI "," BLOCK_IDE "," BLOCK_EMPTY_CD "," BLOCK_NVME "," BLOCK_READ_ONLY "]"
/* -chardev socket,id=c -device vhost-user-blk-pci,chardev=c,id=vu */
#define OBJECTS                                                                                                        \
    "[{\"name\": \"type\", \"type\": \"string\"}, {\"name\": \"nv\", \"type\": \"child<nvme>\"}, "                     \
    "{\"name\": \"vu\", \"type\": \"child<vhost-user-blk-pci>\"}, {\"name\": \"vda\", \"type\": "                      \
    "\"child<virtio-blk-pci>\"}]"

static JsonNode *parse_json(const char *text) {
    g_autoptr(GError) error = NULL;
    JsonNode *node = json_from_string(text, &error);
    g_assert_no_error(error);
    return node;
}

static GPtrArray *parse(const char *text) {
    g_autoptr(JsonNode) blocks = parse_json(text);
    return vmsnap_qmp_drives_parse(blocks);
}

static const VmsnapQmpDrive *drive_at(const GPtrArray *drives, guint index) {
    g_assert_cmpuint(index, <, drives->len);
    return g_ptr_array_index(drives, index);
}

static void check_name(const GPtrArray *drives, guint index, const char *name) {
    g_assert_cmpstr(drive_at(drives, index)->base.name, ==, name);
}

static void test_drives_are_where_qemu_has_them(void) {
    static const struct {
        const char *name;
        const char *device;
        const char *node;
        uint64_t size_bytes;
        const char *reason;
    } expected[] = {
        {"drv0", "/machine/peripheral-anon/device[2]/virtio-backend", "#block1036", 67108864, NULL},
        {"named", "/machine/peripheral/named/virtio-backend", "#block1278", 1024, NULL},
        {"cd1", "/machine/peripheral-anon/device[1]", "#block1458", 1048576, "is read-only"},
        {"pflash0", "/machine/system.flash0", "#block1651", 4194304, "is read-only"},
        {"unused", NULL, "#block1837", 67108864, "belongs to no device"},
        {"fd0", "/machine/peripheral/fd0", "#block2028", 1474560, NULL},
        {"vda", "/machine/peripheral/vda/virtio-backend", "n0", 4096, NULL},
        {"sda", "/machine/peripheral/sda", "n1", 67108864, NULL},
        {"n2", "/machine/peripheral-anon/device[0]", "n2", 67108864, NULL},
        {"cd0", "/machine/peripheral/cd0", NULL, 0, "has no medium"},
        {"nv", "/machine/peripheral/nv", "n3", 67108864, NULL},
        {"ro", "/machine/peripheral/ro/virtio-backend", "n4", 67108864, "is read-only"},
    };
    g_autoptr(GPtrArray) drives = parse(BLOCKS);
    g_assert_cmpuint(drives->len, ==, G_N_ELEMENTS(expected));
    for (guint i = 0; i < drives->len; i++) {
        const VmsnapQmpDrive *drive = drive_at(drives, i);
        check_name(drives, i, expected[i].name);
        g_assert_cmpstr(drive->device, ==, expected[i].device);
        g_assert_cmpstr(drive->node, ==, expected[i].node);
        g_assert_cmpuint(drive->size_bytes, ==, expected[i].size_bytes);
        g_assert_cmpstr(drive->base.reason, ==, expected[i].reason);
        g_assert_cmpint(drive->base.media, ==, expected[i].reason ? VMSNAP_MEDIA_LEFT_OUT : VMSNAP_MEDIA_WRITABLE);
    }
}

static void test_a_drive_tells_its_file(void) {
    g_autoptr(GPtrArray) drives = parse(BLOCKS);
    g_assert_cmpstr(drive_at(drives, 0)->base.source, ==, "/d/b.qcow2");
    g_assert_cmpstr(drive_at(drives, 6)->base.source, ==, "ch2.qcow2");
    g_assert_null(drive_at(drives, 9)->base.source);
}

static void test_no_two_drives_have_a_name(void) {
    g_autoptr(GPtrArray) drives =
        parse("[{\"qdev\": \"a\"}, {\"qdev\": \"a\", \"device\": \"b\"}, {\"qdev\": \"a\", \"device\": \"b\"}, "
              "{\"qdev\": \"disk4\"}, {}, {\"device\": \"disk3\"}]");
    check_name(drives, 0, "a");
    check_name(drives, 1, "b");
    check_name(drives, 2, "disk2");
    check_name(drives, 3, "disk4");
    check_name(drives, 4, "disk5");
    check_name(drives, 5, "disk3");
}

static void test_names_are_safe_for_files(void) {
    static const char *const unsafe[] = {"", ".", "..", ".a", "../a", "a/b", "/", "#block1"};
    for (size_t i = 0; i < G_N_ELEMENTS(unsafe); i++) {
        g_autofree char *text = g_strdup_printf("[{\"device\": \"%s\"}]", unsafe[i]);
        g_autoptr(GPtrArray) drives = parse(text);
        check_name(drives, 0, "disk0");
    }
}

static void test_a_name_that_is_too_long_for_a_file_is_not_used(void) {
    g_autofree char *id = g_strnfill(300, 'x');
    g_autofree char *text = g_strdup_printf("[{\"qdev\": \"%s\", \"device\": \"drive0\"}]", id);
    g_autoptr(GPtrArray) drives = parse(text);
    check_name(drives, 0, "drive0");
    g_assert_true(g_str_has_suffix(drive_at(drives, 0)->device, id));
}

static void test_odd_sizes_are_none(void) {
    static const char *const sizes[] = {"-1", "0", "\"5\"", "null", "1.5", "[]"};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autofree char *text = g_strdup_printf("[{\"inserted\": {\"image\": {\"virtual-size\": %s}}}]", sizes[i]);
        g_autoptr(GPtrArray) drives = parse(text);
        g_assert_cmpuint(drive_at(drives, 0)->size_bytes, ==, 0);
    }
}

static void check_judged(const VmsnapQmpDevice *device, gboolean iothread_is_safe, VmsnapMedia media,
                         const char *reason) {
    g_autoptr(GPtrArray) drives = parse("[" BLOCK_SCSI "]");
    VmsnapQmpDrive *drive = g_ptr_array_index(drives, 0);
    vmsnap_qmp_drive_judge(drive, device, iothread_is_safe);
    g_assert_cmpint(drive->base.media, ==, media);
    g_assert_cmpstr(drive->base.reason, ==, reason);
}

static void test_disks_are_backed_up(void) {
    static const char *const types[] = {"scsi-hd", "ide-hd", "virtio-blk-device", "nvme", "usb-storage", NULL};
    for (size_t i = 0; i < G_N_ELEMENTS(types); i++)
        check_judged(&(VmsnapQmpDevice){.type = types[i]}, FALSE, VMSNAP_MEDIA_WRITABLE, NULL);
}

static void test_other_media_are_left_out(void) {
    check_judged(&(VmsnapQmpDevice){.type = "ide-cd"}, TRUE, VMSNAP_MEDIA_LEFT_OUT, "is a CD-ROM");
    check_judged(&(VmsnapQmpDevice){.type = "scsi-cd"}, TRUE, VMSNAP_MEDIA_LEFT_OUT, "is a CD-ROM");
    check_judged(&(VmsnapQmpDevice){.type = "floppy"}, TRUE, VMSNAP_MEDIA_LEFT_OUT, "is a floppy");
}

static void test_what_cannot_be_backed_up_is_refused(void) {
    check_judged(&(VmsnapQmpDevice){.type = "scsi-block"}, TRUE, VMSNAP_MEDIA_REFUSED,
                 "is a SCSI passthrough, which bypasses QEMU's block layer");
    check_judged(&(VmsnapQmpDevice){.type = "scsi-generic"}, TRUE, VMSNAP_MEDIA_REFUSED,
                 "is a SCSI passthrough, which bypasses QEMU's block layer");
    check_judged(&(VmsnapQmpDevice){.type = "scsi-hd", .is_shareable = TRUE}, TRUE, VMSNAP_MEDIA_REFUSED,
                 "is shareable, so that other machines may write to it");
    check_judged(&(VmsnapQmpDevice){.type = "scsi-hd", .has_iothread = TRUE}, FALSE, VMSNAP_MEDIA_REFUSED,
                 VMSNAP_DRIVE_IOTHREAD_REASON);
    check_judged(&(VmsnapQmpDevice){.type = "scsi-hd", .has_iothread = TRUE}, TRUE, VMSNAP_MEDIA_WRITABLE, NULL);
}

static void test_what_is_left_out_stays_so(void) {
    g_autoptr(GPtrArray) drives = parse("[" BLOCK_READ_ONLY "]");
    VmsnapQmpDrive *drive = g_ptr_array_index(drives, 0);
    vmsnap_qmp_drive_judge(drive, &(VmsnapQmpDevice){.type = "scsi-block", .is_shareable = TRUE}, FALSE);
    g_assert_cmpint(drive->base.media, ==, VMSNAP_MEDIA_LEFT_OUT);
    g_assert_cmpstr(drive->base.reason, ==, "is read-only");
}

static void test_drives_of_other_processes_are_refused(void) {
    g_autoptr(GPtrArray) drives = parse(BLOCKS);
    g_autoptr(JsonNode) objects = parse_json(OBJECTS);
    guint n_before = drives->len;
    vmsnap_qmp_drives_add_foreign(drives, objects);
    vmsnap_qmp_drives_add_foreign(drives, objects);
    g_assert_cmpuint(drives->len, ==, n_before + 2);
    check_name(drives, n_before, "vu");
    check_name(drives, n_before + 1, "disk13");
    g_assert_cmpint(drive_at(drives, n_before)->base.media, ==, VMSNAP_MEDIA_REFUSED);
    g_assert_cmpstr(drive_at(drives, n_before)->base.reason, ==, "is served by another process than QEMU");
}

static void test_a_device_is_found_by_its_path(void) {
    g_autoptr(JsonNode) blocks = parse_json(BLOCKS);
    g_assert_cmpstr(vmsnap_qmp_find_node(blocks, "/machine/peripheral/sda"), ==, "n1");
    g_assert_cmpstr(vmsnap_qmp_find_node(blocks, "/machine/peripheral/vda/virtio-backend"), ==, "n0");
    g_assert_cmpstr(vmsnap_qmp_find_node(blocks, "/machine/peripheral-anon/device[0]"), ==, "n2");
    g_assert_null(vmsnap_qmp_find_node(blocks, "/machine/peripheral/cd0"));
    g_assert_null(vmsnap_qmp_find_node(blocks, "/machine/peripheral/other"));
    g_assert_null(vmsnap_qmp_find_node(blocks, "sda"));
}

/* Whatever is wrong with it, and whatever comes out. */
static void check_drives(const GPtrArray *drives) {
    for (guint i = 0; i < drives->len; i++) {
        VmsnapQmpDrive *drive = g_ptr_array_index(drives, i);
        g_assert_true(vmsnap_drive_name_is_safe(drive->base.name));
        for (guint other = 0; other < i; other++)
            g_assert_cmpstr(drive->base.name, !=, drive_at(drives, other)->base.name);
        vmsnap_qmp_drive_judge(drive, &(VmsnapQmpDevice){0}, FALSE);
        g_assert_cmpint(drive->base.reason == NULL, ==, drive->base.media == VMSNAP_MEDIA_WRITABLE);
        g_assert_true(drive->base.media != VMSNAP_MEDIA_WRITABLE || (drive->device && drive->node));
    }
}

static void check_blocks(JsonNode *blocks, gconstpointer data) {
    (void)data;
    g_autoptr(GPtrArray) drives = vmsnap_qmp_drives_parse(blocks);
    check_drives(drives);
    (void)vmsnap_qmp_find_node(blocks, "/machine/peripheral/sda");
}

static void test_wrong_answers_do_no_harm(void) {
    static const char some[] = "[" BLOCK_DRIVE "," BLOCK_SCSI "," BLOCK_EMPTY_CD "," BLOCK_UNUSED "]";
    g_assert_cmpuint(json_mutate(some, check_blocks, NULL), >, 500);
}

static void check_objects(JsonNode *objects, gconstpointer data) {
    (void)data;
    g_autoptr(GPtrArray) drives = parse(BLOCKS);
    vmsnap_qmp_drives_add_foreign(drives, objects);
    check_drives(drives);
}

static void test_wrong_objects_do_no_harm(void) {
    g_assert_cmpuint(json_mutate(OBJECTS, check_objects, NULL), >, 100);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qmp-machine/drives-are-where-qemu-has-them", test_drives_are_where_qemu_has_them);
    g_test_add_func("/qmp-machine/a-drive-tells-its-file", test_a_drive_tells_its_file);
    g_test_add_func("/qmp-machine/no-two-drives-have-a-name", test_no_two_drives_have_a_name);
    g_test_add_func("/qmp-machine/names-are-safe-for-files", test_names_are_safe_for_files);
    g_test_add_func("/qmp-machine/a-name-that-is-too-long-for-a-file-is-not-used",
                    test_a_name_that_is_too_long_for_a_file_is_not_used);
    g_test_add_func("/qmp-machine/odd-sizes-are-none", test_odd_sizes_are_none);
    g_test_add_func("/qmp-machine/disks-are-backed-up", test_disks_are_backed_up);
    g_test_add_func("/qmp-machine/other-media-are-left-out", test_other_media_are_left_out);
    g_test_add_func("/qmp-machine/what-cannot-be-backed-up-is-refused", test_what_cannot_be_backed_up_is_refused);
    g_test_add_func("/qmp-machine/what-is-left-out-stays-so", test_what_is_left_out_stays_so);
    g_test_add_func("/qmp-machine/drives-of-other-processes-are-refused", test_drives_of_other_processes_are_refused);
    g_test_add_func("/qmp-machine/a-device-is-found-by-its-path", test_a_device_is_found_by_its_path);
    g_test_add_func("/qmp-machine/wrong-answers-do-no-harm", test_wrong_answers_do_no_harm);
    g_test_add_func("/qmp-machine/wrong-objects-do-no-harm", test_wrong_objects_do_no_harm);
    return g_test_run();
}
