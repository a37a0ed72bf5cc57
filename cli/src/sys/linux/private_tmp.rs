//! Whether `/tmp` is the machine's.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use procfs::process::{MountInfo, Process};

const TMP: &str = "/tmp";

/// Returns why `/tmp` is not the one that other processes have, where that can be seen.
///
/// `None` says nothing: a sandbox can look like the machine itself.
pub(crate) fn private_tmp() -> Option<String> {
    let mounts = Process::myself().and_then(|process| process.mountinfo());
    // Of several mounts on one another the last is the one that is seen.
    let mount = mounts.ok().and_then(|mounts| {
        let is_tmp = |mount: &MountInfo| mount.mount_point == Path::new(TMP);
        mounts.into_iter().rfind(is_tmp)
    });
    if let Some(why) = mount.as_ref().and_then(reason) {
        return Some(why);
    }
    // Only root and, in a container, its own users may see this.
    let identity = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    match (identity("/proc/1/root/tmp"), identity(TMP)) {
        (Ok(first), Ok(own)) if first != own => {
            Some("/tmp is not the one that process 1 has".to_owned())
        }
        _ => None,
    }
}

/// Returns what the mount on `/tmp` alone says. That it is a tmpfs says nothing: on many
/// machines it is. Nor does that it is a part of a file system, as a subvolume is.
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
    // Shown unless it is root's (`shmem_show_options` in mm/shmem.c). Without privileges a
    // user can mount only in namespaces of its own.
    let owner = mount.super_options.get("uid")?.as_ref()?;
    (mount.fs_type == "tmpfs" && owner != "0")
        .then(|| format!("/tmp is a file system that belongs to user {owner}, as in a sandbox"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certainly_private_is_called_private() {
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
            let told = reason(&mount);
            assert_eq!(told.is_some(), private.is_some(), "{line}");
            assert!(
                told.unwrap_or_default()
                    .contains(private.unwrap_or_default())
            );
        }
    }
}
