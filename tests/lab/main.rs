//! Tests in the lab: real VFIO hot-plug in the test VM of `vagrant/`, which must be running (`make lab`).
//!
//! Each test starts from the state that `vagrant/reset` restores. The tests share one VM, so they run one after the
//! other. Tests that take minutes are ignored here, and run by `make long-lab-test`.

mod accelerators;
mod detach;
mod failures;
mod inventory;
mod mdev;
mod outages;
mod page;
mod power;
mod prepare;
mod profile;
mod remote;
mod scrub;
mod topologies;
mod unit;
mod vf_settings;
mod vgpu;
