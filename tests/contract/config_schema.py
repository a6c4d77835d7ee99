"""Prints for each TOML text whether a JSON schema admits it. Standard input has {"schema": …, "texts": […]}."""

import json
import sys
import tomllib

import jsonschema

given = json.load(sys.stdin)
validator = jsonschema.Draft202012Validator(given["schema"])
print(json.dumps([validator.is_valid(tomllib.loads(text)) for text in given["texts"]]))
