//! KubeVirt alone and in place, in numbers.

use serde_json::Value;

use super::program::virt_steward;

#[test]
fn kubevirt_migrates_and_restarts_for_it_and_we_do_not() {
    let run = virt_steward(
        &["sandbox", "resize-compare", "--vms", "6", "--stuck", "2", "--nodes", "3", "-o", "json"],
        "",
    );
    assert_eq!(run.status, 0, "{}{}", run.stdout, run.stderr);
    let found: Value = serde_json::from_str(&run.stdout).unwrap();
    let (stock, ours) = (&found["stock"], &found["inPlace"]);
    assert_eq!(
        (&ours["resized"], &ours["stuckResized"], &ours["migrations"], &ours["restarted"]),
        (&6.into(), &2.into(), &0.into(), &0.into()),
        "{found}"
    );
    assert!(stock["migrations"].as_u64().unwrap() >= 6, "{found}");
    let broken = stock["restarted"].as_u64().unwrap() + stock["waitingForRestart"].as_u64().unwrap();
    assert!(broken >= 2, "{found}");
    assert_eq!(ours["ourWritesInFlightPerVm"], 1, "{found}");
    assert!(ours["writesPerResize"].as_f64() < stock["writesPerResize"].as_f64(), "{found}");
}

/// `RESIZE_VMS=500` takes as many as the specification promises; a machine with nothing else to do has
/// them done in minutes.
#[test]
fn many_resizes_at_once_have_one_write_in_flight_for_each_vm() {
    let count = std::env::var("RESIZE_VMS").unwrap_or_else(|_| "40".into());
    let arguments =
        ["sandbox", "resize-compare", "--vms", count.as_str(), "--stuck", "0", "--only", "in-place"];
    let run = virt_steward(&[&arguments[..], &["-o", "json"]].concat(), "");
    assert_eq!(run.status, 0, "{}{}", run.stdout, run.stderr);
    let found: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(found["inPlace"]["resized"].to_string(), count, "{found}");
    assert_eq!(found["inPlace"]["ourWritesInFlightPerVm"], 1, "{found}");
}
