import pytest
import torch

from mmlocalattn.converters.flax_tree import parameters, read_msgpack, unflatten

FLOATS = bytes.fromhex('0000803f 000000c0 00004040')  # 1, -2, 3 in little-endian fp32


def array(shape: bytes, name: str, values: bytes) -> bytes:
    """Flax's extension for arrays: a list of shape, dtype, values, packed again."""
    content = b'\x93' + shape + bytes([0xA0 + len(name)]) + name.encode()
    content += bytes([0xC4, len(values)]) + values
    return bytes([0xC7, len(content), 1]) + content


@pytest.mark.parametrize(
    ('data', 'value'),
    [
        ('c0', None),
        ('c2', False),
        ('c3', True),
        ('7f', 127),
        ('ff', -1),
        ('e0', -32),
        ('cc ff', 255),
        ('cd 0100', 256),
        ('ce 00010000', 65536),
        ('cf 0000000100000000', 2**32),
        ('d0 80', -128),
        ('d1 ff00', -256),
        ('d2 80000000', -(2**31)),
        ('d3 ffffffff00000000', -(2**32)),
        ('ca 3fc00000', 1.5),
        ('cb 3ff8000000000000', 1.5),
        ('a2 6869', 'hi'),
        ('d9 02 6869', 'hi'),
        ('da 0002 6869', 'hi'),
        ('db 00000002 6869', 'hi'),
        ('c4 02 0001', b'\0\1'),
        ('c5 0002 0001', b'\0\1'),
        ('c6 00000002 0001', b'\0\1'),
        ('93 01 02 03', [1, 2, 3]),
        ('dc 0002 01 02', [1, 2]),
        ('dd 00000002 01 02', [1, 2]),
        ('82 a1 61 01 a1 62 90', {'a': 1, 'b': []}),
        ('de 0001 a1 61 c0', {'a': None}),
        ('df 00000001 a1 61 80', {'a': {}}),
        ('c7 03 02 92 01 02', 1 + 2j),
    ],
)
def test_formats_of_the_specification(data, value):
    result = read_msgpack(bytes.fromhex(data))
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize('length', [1, 2, 4, 8, 16])
def test_fixed_extensions_have_a_length(length):
    data = bytes([0xD4 + length.bit_length() - 1, 9]) + bytes(length)
    with pytest.raises(ValueError, match='no extension type 9'):
        read_msgpack(data)


@pytest.mark.parametrize(
    ('shape', 'name', 'values', 'expected'),
    [
        (b'\x91\x03', 'float32', FLOATS, torch.tensor([1.0, -2.0, 3.0])),
        (b'\x92\x03\x01', 'float32', FLOATS, torch.tensor([[1.0], [-2.0], [3.0]])),
        (b'\x90', 'int32', b'\x05\0\0\0', torch.tensor(5, dtype=torch.int32)),
        (b'\x91\x02', 'bfloat16', b'\x80\x3f\0\xc0', torch.tensor([1.0, -2.0]).bfloat16()),
        (b'\x91\x01', 'float16', b'\0\x3c', torch.tensor([1.0]).half()),
        (b'\x92\x00\x02', 'float32', b'', torch.zeros(0, 2)),
    ],
)
def test_arrays(shape, name, values, expected):
    result = read_msgpack(array(shape, name, values))
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)


def test_chunks_of_large_arrays_are_joined():
    chunk = array(b'\x91\x03', 'float32', FLOATS)
    data = b'\x83\xb9__msgpack_chunked_array__\xc3'
    data += b'\xa5shape\x82\xa10\x02\xa11\x03'
    data += b'\xa6chunks\x82\xa10' + chunk + b'\xa11' + chunk
    expected = torch.tensor([[1.0, -2.0, 3.0]] * 2)
    assert torch.equal(read_msgpack(b'\x81\xa1w' + data)['w'], expected)


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', '0 bytes are too few'),
        (b'hello', 'ends at 1 of 5'),
        (b'\x93\x01\x02', 'too few'),
        (b'\xc1', 'not a msgpack file'),
        (b'\xa1\xff', 'not a msgpack file'),
        (b'\x81\x90\x01', 'not a msgpack file'),
        (array(b'\x91\x03', 'float32', FLOATS[:8]), 'not a msgpack file'),
        (b'\xc7\x08\x01\x93\x91\x01\xa1f\xcd\xff\xff', 'not the bytes of an array: 65535'),
        (array(b'\x91\x01', 'object', FLOATS), 'no torch dtype for an array of object'),
        (b'\x91' * 100_000, 'not a msgpack file'),
    ],
)
def test_rejects_other_files(data, message):
    with pytest.raises(ValueError, match=message):
        read_msgpack(data)


@pytest.mark.parametrize('wrapper', ['{}', 'params', 'optimizer/target', 'optimizer/target/params'])
def test_parameters_of_training_states(wrapper):
    tree = leaf = {}
    if wrapper != '{}':
        tree['step'] = 7
        for key in wrapper.split('/'):
            leaf[key] = {}
            leaf = leaf[key]
    weight = torch.zeros(2)
    leaf['Dense_0'] = {'kernel': weight, 'bias': weight}
    assert list(parameters(tree)) == ['Dense_0/kernel', 'Dense_0/bias']
    assert parameters(tree) == {'Dense_0/kernel': weight, 'Dense_0/bias': weight}


def test_names_become_a_tree_again():
    names = {'a/b/c': 1, 'a/d': 2, 'e': 3}
    assert unflatten(names) == {'a': {'b': {'c': 1}, 'd': 2}, 'e': 3}


@pytest.mark.parametrize(
    ('tree', 'message'),
    [
        ({}, 'holds no weights, got {}'),
        (104, 'holds no weights, got 104'),
        ({'params': {'w': torch.zeros(1), 'step': {'count': 3}}}, 'weights: step/count'),
    ],
)
def test_rejects_trees_without_parameters(tree, message):
    with pytest.raises(ValueError, match=message):
        parameters(tree)
