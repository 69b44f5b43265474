//! What any Kubernetes API server does, seen from outside. Runs against the sandbox; with
//! `CONFORMANCE_KUBECONFIG=<file>` against the API server that the file names, whose user must be
//! an administrator. Every case works in a namespace of its own and removes it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod admission;
mod apply;
mod cluster;
mod custom;
mod kinds;
mod lifecycle;
mod objects;
mod pods;
mod rights;
mod shapes;
mod watches;
