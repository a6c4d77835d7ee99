//! The lab's tests: real VFIO hot-plug in the test VM of `vagrant/`, which must be up (`make lab`).
//!
//! Each test starts from the state that `vagrant/reset` makes. They share one VM, so they run one after the other.
//! Those that take minutes are ignored here, and run by `make long-lab-test`.

mod accelerators;
mod detach;
mod failures;
mod inventory;
mod outages;
mod power;
mod remote;
mod topologies;
