"""python -m gigagan."""

from gigagan.cli import main

if __name__ == "__main__":
    main()
