"""From a run folder to a runtime: files of finished models, and what runtimes make of them."""
