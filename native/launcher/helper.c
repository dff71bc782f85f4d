/*
 * helper.c: decide how the child can get a private mount namespace.
 *
 * Only looks; nothing is opened or changed. The helper counts only if root owns it, nobody else can
 * write it, and it really has its privilege: a helper that cannot work must be known before the
 * daemon chooses the backend. No privilege needed.
 */
#include "launcher.h"

#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>

#define CAP_SYS_ADMIN_BIT (1u << 21)

static const char *const helper_places[] = {
    "/usr/local/libexec/rootseal/rootseal-scope",
    "/usr/libexec/rootseal/rootseal-scope",
};

/* The permitted set of a security.capability attribute (v2 or v3, little-endian) has CAP_SYS_ADMIN.
 */
static bool has_capability(const char *path)
{
	uint8_t data[24];
	ssize_t n = getxattr(path, "security.capability", data, sizeof(data));

	if (n < 20)
		return false;
	return (data[4] | data[5] << 8 | data[6] << 16 | (uint32_t)data[7] << 24) &
	       CAP_SYS_ADMIN_BIT;
}

static bool usable(const char *path)
{
	struct statvfs fs;
	struct stat st;

	if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || st.st_uid != 0 || (st.st_mode & 022))
		return false;
	if (access(path, X_OK) < 0)
		return false;
	if (statvfs(path, &fs) < 0 || (fs.f_flag & (ST_NOSUID | ST_NOEXEC)))
		return false;
	if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 0)
		return false; /* the kernel would ignore its capability */
	return (st.st_mode & S_ISUID) || has_capability(path);
}

enum namespace_way namespace_way(const char *wanted_helper, const char **ret_helper)
{
	*ret_helper = NULL;
	if (have_sys_admin())
		return NAMESPACE_DIRECT;
	if (wanted_helper) {
		*ret_helper = wanted_helper;
		return usable(wanted_helper) ? NAMESPACE_HELPER : NAMESPACE_NONE;
	}
	for (size_t i = 0; i < sizeof(helper_places) / sizeof(*helper_places); i++) {
		if (usable(helper_places[i])) {
			*ret_helper = helper_places[i];
			return NAMESPACE_HELPER;
		}
	}
	return NAMESPACE_NONE;
}

const char *namespace_way_name(enum namespace_way way)
{
	switch (way) {
	case NAMESPACE_DIRECT:
		return "direct";
	case NAMESPACE_HELPER:
		return "helper";
	case NAMESPACE_NONE:
		break;
	}
	return "none";
}
