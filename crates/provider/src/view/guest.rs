//! What the guest agent tells: system, users, file systems (`VirtualMachineInstanceGuestAgentInfo` and the
//! two lists, v1.9).

use serde::Serialize;
use serde_json::Value;

use super::json::{list, some, text};

/// The guest's system.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestOs {
    /// Its name for itself.
    pub hostname: String,
    /// What it is, as in `Fedora Linux 41 (Cloud Edition)`.
    pub os: String,
    /// Its kernel's release.
    pub kernel: String,
    /// Its architecture.
    pub machine: String,
    /// Its time zone.
    pub timezone: String,
    /// The version of its agent.
    pub agent: String,
    /// Whether its file systems are frozen.
    pub frozen: bool,
}

impl GuestOs {
    /// Reads `guestosinfo`.
    pub fn of(info: &Value) -> Self {
        let os = some(info, "/os/prettyName").or_else(|| some(info, "/os/name"));
        Self {
            hostname: text(info, "/hostname").into(),
            os: os.unwrap_or_default(),
            kernel: text(info, "/os/kernelRelease").into(),
            machine: text(info, "/os/machine").into(),
            timezone: text(info, "/timezone").into(),
            agent: text(info, "/guestAgentVersion").into(),
            frozen: text(info, "/fsFreezeStatus") == "frozen",
        }
    }
}

/// Somebody who is logged in.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestUser {
    /// The name.
    pub user: String,
    /// The domain, on Windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Since when, seconds since 1970.
    pub login_time: f64,
}

/// A mounted file system.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestFileSystem {
    /// Its device in the guest, as in `vda1`.
    pub device: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// Its type, as in `ext4`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Its size in bytes.
    pub total_bytes: u64,
}

/// Reads `userlist`.
pub fn users(answer: &Value) -> Vec<GuestUser> {
    let read = |one: &Value| GuestUser {
        user: text(one, "/userName").into(),
        domain: some(one, "/domain"),
        login_time: one.pointer("/loginTime").and_then(Value::as_f64).unwrap_or_default(),
    };
    list(answer, "/items").iter().map(read).collect()
}

/// Reads `filesystemlist`.
pub fn file_systems(answer: &Value) -> Vec<GuestFileSystem> {
    let bytes = |one: &Value, key: &str| one.get(key).and_then(Value::as_u64).unwrap_or_default();
    let read = |one: &Value| GuestFileSystem {
        device: text(one, "/diskName").into(),
        mount_point: text(one, "/mountPoint").into(),
        kind: text(one, "/fileSystemType").into(),
        used_bytes: bytes(one, "usedBytes"),
        total_bytes: bytes(one, "totalBytes"),
    };
    list(answer, "/items").iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_agent_leaves_out_reads_as_empty() {
        let os =
            GuestOs::of(&json!({"hostname": "web", "os": {"name": "Fedora"}, "fsFreezeStatus": "thawed"}));
        assert_eq!((os.os.as_str(), os.frozen, os.kernel.as_str()), ("Fedora", false, ""));
        let found = users(&json!({"items": [{"userName": "root", "loginTime": 1.5}]}));
        assert_eq!((found[0].user.as_str(), found[0].login_time, &found[0].domain), ("root", 1.5, &None));
        let found =
            file_systems(&json!({"items": [{"diskName": "vda1", "mountPoint": "/", "usedBytes": 5}, 3]}));
        assert_eq!((found[0].used_bytes, found.len(), found[1].mount_point.as_str()), (5, 2, ""));
    }
}
