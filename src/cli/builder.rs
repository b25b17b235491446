//! `faber builder`: the process that makes one image's root file system.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::Context;

use crate::artifact::Spool;
use crate::builder;
use crate::chain::chain;
use crate::image::{Event, Order, Store};
use crate::keeper::{Instance, take_stop_signals};
use crate::sandbox::{Slot, SlotPlace, rootless};

/// An order is a definition and a lock.
const ORDER_BYTES: u64 = 128 << 20;

pub fn run() -> anyhow::Result<ExitCode> {
    // Whoever wants the image may be gone at any moment, however it went.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    match build() {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(reason) => {
            builder::tell(&Event::Failed(reason));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn build() -> Result<(), String> {
    let told = |error: anyhow::Error| format!("{error:#}");
    let order = order().map_err(told)?;
    let (signals, instance, mut slot) = claim(&order).map_err(told)?;
    let done = builder::build(&order, &mut slot, signals.as_fd()).map_err(|error| chain(&error));
    drop(slot);
    drop(instance);
    done
}

fn order() -> anyhow::Result<Order> {
    let mut text = Vec::new();
    std::io::stdin().take(ORDER_BYTES).read_to_end(&mut text)?;
    serde_json::from_slice(&text).context("the builder is started by `faber image build`")
}

fn claim(order: &Order) -> anyhow::Result<(nix::sys::signalfd::SignalFd, Instance, Slot)> {
    // In an ordinary user's namespace, where whoever started this is already: the instances' place is told.
    rootless::enter(&order.root)?;
    let signals = take_stop_signals()?;
    let instance = Instance::found(order.resources)?;
    let dir = instance.slot_dir("b0");
    let store = Store::new(&order.root);
    // Build steps hand nothing on.
    let spool = Spool::create(1 << 20)?;
    let place = SlotPlace { run_dir: instance.run_dir(), dir: &dir, instance: instance.name(), name: "b0" };
    let slot = Slot::claim(place, store, Vec::new(), order.resources, spool)?;
    Ok((signals, instance, slot))
}
