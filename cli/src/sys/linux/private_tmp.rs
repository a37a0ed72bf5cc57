//! Whether `/tmp` is the machine's or a private one.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use procfs::process::{MountInfo, Process};

const TMP: &str = "/tmp";

/// Returns why `/tmp` is not the one that other processes see, if that can be determined.
///
/// `None` is not proof: a sandbox can be indistinguishable from the machine itself.
pub(crate) fn private_tmp() -> Option<String> {
    let mounts = Process::myself().and_then(|process| process.mountinfo());
    // Of several mounts on the same path, the last one is visible.
    let mount = mounts.ok().and_then(|mounts| {
        let is_tmp = |mount: &MountInfo| mount.mount_point == Path::new(TMP);
        mounts.into_iter().rfind(is_tmp)
    });
    if let Some(why) = mount.as_ref().and_then(reason) {
        return Some(why);
    }
    // Only root and, in a container, its own users can read this.
    let identity = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    match (identity("/proc/1/root/tmp"), identity(TMP)) {
        (Ok(first), Ok(own)) if first != own => {
            Some("/tmp is not the same as that of process 1".to_owned())
        }
        _ => None,
    }
}

/// Returns why the mount on `/tmp` is private, if the mount itself shows that. A tmpfs or a part of a
/// file system, such as a subvolume, is not proof: many machines use them for the shared `/tmp`.
fn reason(mount: &MountInfo) -> Option<String> {
    for (part, what) in [
        ("/systemd-private-", "service (PrivateTmp= in systemd)"),
        ("/snap-private-tmp/", "snap"),
        ("/.flatpak/", "flatpak"),
    ] {
        if mount.root.contains(part) {
            return Some(format!("/tmp is private to this {what}"));
        }
    }
    // The kernel shows the owner unless it is root (`shmem_show_options` in mm/shmem.c). An
    // unprivileged user can mount only in its own namespaces.
    let owner = mount.super_options.get("uid")?.as_ref()?;
    (mount.fs_type == "tmpfs" && owner != "0")
        .then(|| format!("/tmp is a file system that belongs to user {owner}, as in a sandbox"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mount_that_is_certainly_private_is_reported() {
        let service = "/tmp/systemd-private-3c0ffee-web.service-Ab12Cd/tmp";
        let snap = "/tmp/snap-private-tmp/snap.firefox/tmp";
        for (root, kind, options, private) in [
            ("/", "tmpfs", "rw,size=8165356k,nr_inodes=1048576", None),
            ("/", "ext4", "rw", None),
            ("/@tmp", "btrfs", "rw,subvol=/@tmp", None),
            ("/srv/tmp", "ext4", "rw", None),
            (service, "ext4", "rw", Some("to this service")),
            (snap, "ext4", "rw", Some("to this snap")),
            (
                "/.flatpak/org.x/tmp",
                "tmpfs",
                "rw",
                Some("to this flatpak"),
            ),
            ("/", "tmpfs", "rw,uid=1000,gid=1000", Some("user 1000")),
        ] {
            let line = format!("700 600 0:52 {root} /tmp rw,nosuid - {kind} none {options}");
            let mount = MountInfo::from_line(&line).expect("as the kernel writes it");
            let why = reason(&mount);
            assert_eq!(why.is_some(), private.is_some(), "{line}");
            assert!(
                why.unwrap_or_default()
                    .contains(private.unwrap_or_default())
            );
        }
    }
}
