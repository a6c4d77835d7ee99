"""The commands of OpenStackClient."""
