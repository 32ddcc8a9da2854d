"""Top-level domains, for e-mail addresses: those of countries, and the general ones that people have addresses in.

Source: the root zone of IANA. Rare general ones are left out: what ends in ``.service`` or ``.zip`` in text is a file.
"""

_COUNTRIES = """
ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bw by bz ca cc cd cf cg
ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm fo fr ga gd ge gf gg gh gi
gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke kg kh ki km kn kp kr kw
ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw mx my mz na nc ne nf ng
ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs ru rw sa sb sc sd se sg sh si sk sl sm sn
so sr ss st su sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw tz ua ug uk us uy uz va vc ve vg vi vn vu wf ws
ye yt za zm zw
"""

_GENERAL = """
academy aero agency app art asia bank berlin biz blog business cafe capital care careers cat center charity church city
click cloud club coach codes coffee com community company computer consulting cool coop dental design dev digital
directory doctor earth edu education email engineer engineering enterprises events exchange expert express family farm
finance fit foundation fund games gallery global gmbh gov graphics group guide guru health holdings hospital host house
immo inc info institute insurance int international jobs law legal life limited link live llc london ltd management
market marketing media medical mil mobi money moscow museum name net network news ngo ninja nyc one online ooo org
paris partners photo photography photos pizza plus post press pro productions properties pub realty reisen rent repair
report restaurant reviews rocks school science services sexy shop site social software solar solutions space store
studio style support systems team tech technology tel theater tips today tools top tours trade training travel tube
university ventures vet video villas vip vision wien wiki win works world wtf xyz yoga zone example test
"""

_KNOWN = frozenset((_COUNTRIES + _GENERAL).split())


def is_top_level(name: str) -> bool:
    """Whether names end so; `name` in lower case. Names in other scripts are taken as they are."""
    return name in _KNOWN or name.startswith("xn--") or not name.isascii()
