"""The REST face: domains, aliases, credentials, DNS checks and logs over HTTP; knows the store, not the mail sides."""
