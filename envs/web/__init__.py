"""Web environments: a site in the sandbox, read as text or through headless Chromium."""
