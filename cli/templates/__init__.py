"""What `turnwise init` writes. Each file is a sound environment named `MyEnv` of package `my-env`,
whose names are replaced; none of them is ever imported from here."""
