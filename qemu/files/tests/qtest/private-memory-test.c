/*
 * Test guest-private memory backends, as far as it goes without KVM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qobject/qbool.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"

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

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/private-memory/backend/incompatible", test_incompatible);
    qtest_add_func("/private-memory/query-memdev", test_query_memdev);
    qtest_add_func("/private-memory/backend/unused", test_unused);
    qtest_add_func("/private-memory/backend/spelling", test_spelling);
    qtest_add_func("/private-memory/query", test_query_private_memory);

    return g_test_run();
}
