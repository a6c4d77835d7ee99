//! The stories test hotslot from outside, through HTTP and the command line. They are one program, so that they are
//! linked once and run in parallel.

mod accelerators;
mod architecture;
mod attachments;
mod cli;
mod clients;
mod clock;
mod configuration;
mod connections;
mod cyborg;
mod database;
mod database_files;
mod detach;
mod drift;
mod events;
mod gone;
mod inventory;
mod kinds;
mod load;
mod mdev;
mod overdue;
mod power;
mod processes;
mod requests;
mod restart;
mod retries;
mod routes;
mod rules;
mod soak;
mod socket;
mod steps;
mod tls;
mod users;
mod web_pages;
mod webhooks;
