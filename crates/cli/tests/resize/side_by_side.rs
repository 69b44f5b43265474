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

#[test]
fn five_hundred_resizes_at_once_have_one_write_in_flight_for_each_vm() {
    let run = virt_steward(
        &["sandbox", "resize-compare", "--vms", "500", "--stuck", "0", "--only", "in-place", "-o", "json"],
        "",
    );
    assert_eq!(run.status, 0, "{}{}", run.stdout, run.stderr);
    let found: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(found["inPlace"]["resized"], 500, "{found}");
    assert_eq!(found["inPlace"]["ourWritesInFlightPerVm"], 1, "{found}");
}
