import subprocess
import sys

from hapicl.common.terminal.printable import console, printable, printable_name


def test_brackets_and_colons_in_names_are_printed_as_they_are(capsys):
    for name in ("[red]photos[/red]", "a[/b]", ":smile:", "[1, 2]"):
        console().print(name)
        assert capsys.readouterr().out.strip() == name


def test_names_that_are_not_utf8_can_be_printed():
    name = b"caf\xe9 \xc3\xa9.jpg".decode("utf-8", "surrogateescape")
    assert printable(name) == "caf\\udce9 é.jpg"
    assert printable("plain é") == "plain é"
    assert printable("\ud800") == "\\ud800"


def test_a_name_is_one_line_without_colours():
    name = b"a\nb\x1b[31m caf\xe9 \xc3\xa9.jpg".decode("utf-8", "surrogateescape")
    assert printable_name(name) == r"a\nb\x1b[31m caf\udce9 é.jpg"
    assert printable_name(printable_name(name)) == printable_name(name)


def test_the_command_line_prints_names_that_are_not_utf8(tmp_path):
    # a mask file whose image folder has such a name
    code = (
        "import sys, os; from hapicl.data.masks.writer import write_masks, MaskRow\n"
        "row = MaskRow(path=os.fsdecode(b'caf\\xe9.jpg'), reason='empty file')\n"
        "write_masks('m.h5', [row], {'recipe': {'name': 'x'}, 'image_root': os.fsdecode(b'/caf\\xe9')})\n"
        "sys.argv = ['hapicl', 'masks', *sys.argv[1:]]; from hapicl.cli import main; main()"
    )
    for command in (["info", "m.h5"], ["verify", "m.h5", "--images", "."]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert "\\udce9" in done.stdout, done.stderr
        assert "Traceback" not in done.stderr
