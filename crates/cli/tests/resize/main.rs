//! In-place resize from end to end: operator, agents and a simulated KubeVirt with launchers on real
//! unix sockets, who know of each other only what they see of the API and the sockets. Operator and
//! agents have accounts of their own, with no more rights than `doctor resize` asks for (in virtual time:
//! accounts without limits).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail as tests do

mod basics;
mod limits;
mod policy;
#[path = "../program/mod.rs"]
mod program;
mod races;
mod side_by_side;
mod simulated;
mod stage;
mod storm;
