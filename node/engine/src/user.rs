//! Who a process runs as: `user[:group]` looked up in the image's own /etc/passwd and /etc/group.

use crate::error::{EngineError, Result};

/// The two files as they are in the image; empty when missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Accounts {
    pub(crate) passwd: String,
    pub(crate) group: String,
}

/// Numbers for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Accounts {
    fn passwd_lines(&self) -> impl Iterator<Item = PasswdLine<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut parts = line.trim().split(':');
            let name = parts.next()?;
            let uid = parts.nth(1)?.parse().ok()?;
            let gid = parts.next()?.parse().ok()?;
            let home = parts.nth(1).unwrap_or("");
            Some(PasswdLine {
                name,
                uid,
                gid,
                home,
            })
        })
    }

    fn group_lines(&self) -> impl Iterator<Item = GroupLine<'_>> {
        self.group.lines().filter_map(|line| {
            let mut parts = line.trim().split(':');
            let name = parts.next()?;
            let gid = parts.nth(1)?.parse().ok()?;
            let members = parts.next().unwrap_or("");
            Some(GroupLine { name, gid, members })
        })
    }

    /// Resolves `user[:group]` (empty: root) and further groups.
    pub(crate) fn resolve(&self, user: &str, extra: &[String]) -> Result<Identity> {
        let (user, group) = user.split_once(':').unwrap_or((user, ""));
        let number: Option<u32> = if user.is_empty() {
            Some(0)
        } else {
            user.parse().ok()
        };
        // A name that looks like a number may still be a name, and names win.
        let line = self
            .passwd_lines()
            .find(|line| line.name == user && !user.is_empty())
            .or_else(|| self.passwd_lines().find(|line| Some(line.uid) == number));
        let (uid, mut gid, name, home) = match (line, number) {
            (Some(line), _) => (line.uid, line.gid, line.name, line.home),
            (None, Some(uid)) => (uid, 0, "", ""),
            (None, None) => {
                return Err(EngineError::invalid(
                    "user",
                    format!("unable to find user {user}: no matching entries in passwd file"),
                ));
            }
        };
        let mut groups = Vec::new();
        if group.is_empty() {
            let is_member = |line: &GroupLine<'_>| {
                !name.is_empty() && line.members.split(',').any(|member| member.trim() == name)
            };
            groups.extend(self.group_lines().filter(is_member).map(|line| line.gid));
        } else {
            gid = self.group_number(group)?;
        }
        for group in extra {
            groups.push(self.group_number(group)?);
        }
        groups.sort_unstable();
        groups.dedup();
        let home = if home.is_empty() { "/" } else { home };
        Ok(Identity {
            uid,
            gid,
            groups,
            home: home.to_owned(),
        })
    }

    fn group_number(&self, group: &str) -> Result<u32> {
        self.group_lines()
            .find(|line| line.name == group)
            .map(|line| line.gid)
            .or_else(|| group.parse().ok())
            .ok_or_else(|| {
                EngineError::invalid(
                    "group",
                    format!("unable to find group {group}: no matching entries in group file"),
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/var/www:/bin/sh\nbad\n"
                .to_owned(),
            group: "root:x:0:\nwheel:x:10:root\nwww:x:34:\nextra:x:50:web,other\n".to_owned(),
        }
    }

    fn check(user: &str, uid: u32, gid: u32, groups: &[u32], home: &str) {
        let found = accounts().resolve(user, &[]).unwrap();
        assert_eq!(
            (
                found.uid,
                found.gid,
                found.groups.as_slice(),
                found.home.as_str()
            ),
            (uid, gid, groups, home),
            "{user}"
        );
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        check("", 0, 0, &[10], "/root");
        check("web", 33, 34, &[50], "/var/www");
        check("33", 33, 34, &[50], "/var/www");
        check("web:wheel", 33, 10, &[], "/var/www");
        check("1000", 1000, 0, &[], "/");
        check("1000:7", 1000, 7, &[], "/");
    }

    #[test]
    fn unknown_names_are_refused_and_extra_groups_added() {
        assert!(accounts().resolve("nobody", &[]).is_err());
        assert!(accounts().resolve("web:nogroup", &[]).is_err());
        let extra = ["wheel".to_owned(), "99".to_owned()];
        assert_eq!(
            accounts().resolve("web", &extra).unwrap().groups,
            [10, 50, 99]
        );
        assert!(Accounts::default().resolve("", &[]).is_ok());
    }
}
