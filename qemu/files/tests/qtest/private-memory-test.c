/*
 * Test guest-private memory backends, as far as it goes without KVM, and what
 * becomes of private memory without any doing of the guest's CPUs
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "libqtest.h"
#include "qemu/units.h"
#include "qobject/qbool.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "standard-headers/linux/virtio_balloon.h"
#include "standard-headers/linux/virtio_config.h"

/* Only a host kernel with F_SEAL_GUEST can do more than refuse. */
static bool add_backend(QTestState *qts)
{
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'object-add', 'arguments': {"
                           " 'qom-type': 'memory-backend-memfd', 'id': 'mem',"
                           " 'size': 1048576, 'guest-private': true } }");
    bool ok = qdict_haskey(rsp, "return");

    if (!ok) {
        g_test_skip("the host kernel has no F_SEAL_GUEST");
    }
    qobject_unref(rsp);
    return ok;
}

static void assert_refused(QTestState *qts, const char *option, bool value)
{
    QDict *args = qdict_new();
    QDict *rsp;

    qdict_put_str(args, "qom-type", "memory-backend-memfd");
    qdict_put_str(args, "id", "mem");
    qdict_put_int(args, "size", 1024 * 1024);
    qdict_put_bool(args, "guest-private", true);
    qdict_put_bool(args, option, value);
    rsp = qtest_qmp(qts, "{ 'execute': 'object-add', 'arguments': %p }", args);

    g_assert(qdict_haskey(rsp, "error"));
    g_assert_nonnull(strstr(qdict_get_str(qdict_get_qdict(rsp, "error"),
                                          "desc"),
                            "guest-private=on"));
    qobject_unref(rsp);
}

static void test_incompatible(void)
{
    QTestState *qts = qtest_init("-machine none");

    assert_refused(qts, "hugetlb", true);
    assert_refused(qts, "share", false);
    assert_refused(qts, "prealloc", true);
    qtest_quit(qts);
}

static void test_query_memdev(void)
{
    QTestState *qts = qtest_init("-machine none");

    if (add_backend(qts)) {
        QDict *rsp = qtest_qmp(qts, "{ 'execute': 'query-memdev' }");
        QDict *mem = qobject_to(QDict, qlist_peek(qdict_get_qlist(rsp,
                                                                  "return")));

        g_assert_cmpstr(qdict_get_str(mem, "id"), ==, "mem");
        g_assert_true(qdict_get_bool(mem, "guest-private"));
        g_assert_false(qdict_get_bool(mem, "dump"));
        qobject_unref(rsp);
    }
    qtest_quit(qts);
}

static void assert_fixed(QTestState *qts, const char *name, QObject *value)
{
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'qom-set', 'arguments': {"
                           " 'path': '/objects/mem', 'property': %s,"
                           " 'value': %p } }", name, value);

    qmp_expect_error_and_unref(rsp, "GenericError");
}

/* What is not in use can be deleted, but not changed. */
static void test_unused(void)
{
    static const char *const names[] = {
        "merge", "dump", "prealloc", "share", "hugetlb", "seal",
        "guest-private",
    };
    QTestState *qts = qtest_init("-machine none");

    if (add_backend(qts)) {
        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
            assert_fixed(qts, names[i], QOBJECT(qbool_from_bool(true)));
            assert_fixed(qts, names[i], QOBJECT(qbool_from_bool(false)));
        }
        assert_fixed(qts, "size", QOBJECT(qnum_from_int(2 * 1024 * 1024)));
        qtest_qmp_assert_success(qts, "{ 'execute': 'object-del',"
                                 " 'arguments': { 'id': 'mem' } }");
    }
    qtest_quit(qts);
}

/* Both spellings, in each syntax that users type. */
static void test_spelling(void)
{
    static const char *const options[] = {
        "memory-backend-memfd,id=mem,size=1M,share=off,guest_private=on",
        "memory-backend-memfd,id=mem,size=1M,share=off,guest-private=on",
    };
    QTestState *qts = qtest_init("-machine none");

    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        g_autofree char *reply = qtest_hmp(qts, "object_add %s", options[i]);

        g_assert_nonnull(strstr(reply, "guest-private=on and share=off"));
    }
    qtest_quit(qts);
}

static void test_query_private_memory(void)
{
    QTestState *qts = qtest_init("-machine none");
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'query-private-memory' }");

    qmp_expect_error_and_unref(rsp, "GenericError");
    qtest_quit(qts);
}

#define PRIVATE_GPA (64 * MiB)
#define SHARED_GPA (65 * MiB)
#define BALLOON_PAGE (1 << VIRTIO_BALLOON_PFN_SHIFT)

static int64_t get_private(QTestState *qts)
{
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'query-private-memory' }");
    int64_t value = qdict_get_int(qdict_get_qdict(rsp, "return"), "private");

    qobject_unref(rsp);
    return value;
}

static bool log_has(const char *log, const char *text)
{
    g_autofree char *content = NULL;

    g_assert_true(g_file_get_contents(log, &content, NULL, NULL));
    return strstr(content, text);
}

static void inflate(QTestState *qts, QVirtioDevice *dev, QVirtQueue *vq,
                    QGuestAllocator *alloc, uint64_t gpa)
{
    uint64_t list = guest_alloc(alloc, sizeof(uint32_t));
    uint32_t head;

    /* In the shared half of a private page, that's what a device leaves. */
    qtest_memset(qts, gpa, 0x5a, BALLOON_PAGE);

    qtest_writel(qts, list, gpa >> VIRTIO_BALLOON_PFN_SHIFT);
    head = qvirtqueue_add(qts, vq, list, sizeof(uint32_t), false, false);
    qvirtqueue_kick(qts, dev, vq, head);
    qvirtio_wait_used_elem(qts, dev, vq, head, NULL, 30 * G_USEC_PER_SEC);
    guest_free(alloc, list);

    g_assert_cmpint(qtest_readb(qts, gpa), ==, 0);
}

/*
 * The balloon frees shared pages.  A page that is private stays so, only the
 * shared half of it is freed, and QEMU says that this is of no use.
 *
 * The page becomes private as the machine is reset, so that nothing has to run.
 */
static void test_balloon(void)
{
    static const char warning[] = "the guest gives private memory to the "
                                  "balloon";
    g_autofree char *blob = NULL, *log = NULL;
    g_autofree char *zeros = g_malloc0(64 * KiB);
    QPCIAddress addr = { .devfn = QPCI_DEVFN(4, 0) };
    QGuestAllocator alloc;
    QVirtioPCIDevice *dev;
    QTestState *qts;
    QVirtQueue *vq;
    QPCIBus *bus;
    int64_t private;
    bool ok;

    qts = qtest_init("-machine none");
    ok = add_backend(qts);
    qtest_quit(qts);
    if (!ok) {
        return;
    }

    close(g_file_open_tmp("private-memory-test.XXXXXX", &log, NULL));
    close(g_file_open_tmp("private-memory-test.XXXXXX", &blob, NULL));
    g_assert_true(g_file_set_contents(blob, zeros, 64 * KiB, NULL));

    qts = qtest_initf("-accel kvm -S -nodefaults -m 128M -bios %s "
                      "-machine pc,private-memory-backend=mem,"
                      "private-memory-shared-bit=36 "
                      "-object memory-backend-memfd,id=mem,size=128M,"
                      "guest-private=on "
                      "-device loader,file=%s,addr=0x%x,force-raw=on "
                      "-device virtio-balloon-pci,addr=4 2>%s",
                      blob, blob, (unsigned int)PRIVATE_GPA, log);
    private = get_private(qts);
    g_assert_cmpint(private, >=, 64 * KiB);

    pc_alloc_init(&alloc, qts, ALLOC_NO_FLAGS);
    bus = qpci_new_pc(qts, &alloc);
    dev = virtio_pci_new(bus, &addr);
    g_assert_nonnull(dev);
    qvirtio_pci_device_enable(dev);
    qvirtio_start_device(&dev->vdev);
    qvirtio_set_features(&dev->vdev, 1ull << VIRTIO_F_VERSION_1);
    vq = qvirtqueue_setup(&dev->vdev, &alloc, 0);
    qvirtio_set_driver_ok(&dev->vdev);

    inflate(qts, &dev->vdev, vq, &alloc, SHARED_GPA);
    g_assert_false(log_has(log, warning));

    inflate(qts, &dev->vdev, vq, &alloc, PRIVATE_GPA);
    g_assert_cmpint(get_private(qts), ==, private);
    g_assert_true(log_has(log, warning));

    qvirtqueue_cleanup(dev->vdev.bus, vq, &alloc);
    qvirtio_pci_device_disable(dev);
    g_free(dev->pdev);
    g_free(dev);
    qpci_free_pc(bus);
    alloc_destroy(&alloc);
    qtest_quit(qts);
    unlink(blob);
    unlink(log);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/private-memory/backend/incompatible", test_incompatible);
    qtest_add_func("/private-memory/query-memdev", test_query_memdev);
    qtest_add_func("/private-memory/backend/unused", test_unused);
    qtest_add_func("/private-memory/backend/spelling", test_spelling);
    qtest_add_func("/private-memory/query", test_query_private_memory);
    if (g_str_equal(qtest_get_arch(), "x86_64") && qtest_has_accel("kvm")) {
        qtest_add_func("/private-memory/balloon", test_balloon);
    }

    return g_test_run();
}
