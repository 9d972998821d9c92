"""The published tables that plans and reports compare with."""

import pytest

from txl.plan.published import PublishedTable, published_rows


@pytest.mark.parametrize("table", PublishedTable)
def test_every_published_table_has_rows_with_the_same_columns(table):
    rows = published_rows(table)
    assert rows and all(set(row) == set(rows[0]) for row in rows)


def test_the_stability_tables_are_the_original_s():
    rows = published_rows(PublishedTable.stability)
    count = {}
    for row in rows:
        count[row["model"], row["recipe"], row["split"]] = count.get((row["model"], row["recipe"], row["split"]), 0) + 1
        assert row["min"] <= row["mean"] <= row["max"] and row["sd"] > 0
    assert count["base", "single_node", "valid"] == 8 and count["large", "multi_node", "valid"] == 25
    (test,) = [row for row in rows if row["model"] == "base" and row["split"] == "test"]
    assert (test["runs"], test["step"], test["mean"], test["sd"]) == (16, 40_000, 23.24, 0.07794)
