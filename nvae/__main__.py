"""python3 -m nvae COMMAND ..., which an installed package also offers as the program `nvae`."""

from nvae.cli.main import console

if __name__ == "__main__":
    console()
