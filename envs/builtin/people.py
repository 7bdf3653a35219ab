"""First names, a closed list that the worlds with people in them share."""

NAMES = (
    *("ada", "amir", "anna", "bela", "boris", "carla", "dana", "dario", "elena", "emil"),
    *("fatma", "felix", "gina", "hana", "hugo", "ida", "igor", "ines", "ivan", "jana"),
    *("jonas", "kara", "kenji", "lara", "leo", "lina", "luca", "maria", "milan", "nadia"),
    *("nils", "olga", "omar", "paula", "rosa", "sami", "sofia", "tarek", "vera", "yuki"),
)
