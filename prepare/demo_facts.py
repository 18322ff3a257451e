"""The facts behind the demo, as tables: real drugs, microbes, genes, enzymes and nutrients, each with a few facts.

One row of FACTS is one entity: its name, then one value per relation in the order of RELATIONS; "-" leaves a fact out.
The same value always has the same words. The facts are teaching material, as true as a textbook's one-line answer: do
not treat a patient by them.

Rules for a new row. A name shares no five letters in a row with one of its values (Legionella pneumophila has no
"pneumonia"), because an answer that can be read off the name teaches nothing. A value that is also right for other
entities goes into ALSO_TRUE, so that no question calls a right answer wrong.

Not here: the wordings (demo_words.py), the program that writes text and questions (demo.py).
"""

RELATIONS = {
    "drug": ("class", "target", "indication", "adverse effect"),
    "microbe": ("type", "source", "illness", "treatment"),
    "gene": ("product", "disease", "location", "organ"),
    "enzyme": ("pathway", "cofactor", "lack"),
    "nutrient": ("role", "deficiency", "food"),
}

FACTS = {}
FACTS["drug"] = """
atenolol | beta blocker | the beta adrenergic receptor | hypertension | bradycardia
metoprolol | beta blocker | the beta adrenergic receptor | angina | bradycardia
bisoprolol | beta blocker | the beta adrenergic receptor | heart failure | bradycardia
propranolol | beta blocker | the beta adrenergic receptor | migraine | bronchospasm
timolol | beta blocker | the beta adrenergic receptor | glaucoma | bronchospasm
captopril | ACE inhibitor | angiotensin-converting enzyme | diabetic nephropathy | dry cough
enalapril | ACE inhibitor | angiotensin-converting enzyme | heart failure | angioedema
lisinopril | ACE inhibitor | angiotensin-converting enzyme | hypertension | dry cough
ramipril | ACE inhibitor | angiotensin-converting enzyme | heart failure | dry cough
losartan | angiotensin receptor blocker | the AT1 receptor | diabetic nephropathy | hyperkalemia
valsartan | angiotensin receptor blocker | the AT1 receptor | heart failure | hyperkalemia
irbesartan | angiotensin receptor blocker | the AT1 receptor | diabetic nephropathy | hyperkalemia
amlodipine | calcium channel blocker | the L-type calcium channel | hypertension | ankle swelling
nifedipine | calcium channel blocker | the L-type calcium channel | angina | ankle swelling
verapamil | calcium channel blocker | the L-type calcium channel | supraventricular tachycardia | constipation
diltiazem | calcium channel blocker | the L-type calcium channel | angina | bradycardia
furosemide | loop diuretic | the NKCC2 cotransporter | edema | ototoxicity
bumetanide | loop diuretic | the NKCC2 cotransporter | edema | hypokalemia
torsemide | loop diuretic | the NKCC2 cotransporter | heart failure | hypokalemia
doxazosin | alpha blocker | the alpha-1 adrenergic receptor | prostatic hyperplasia | orthostatic hypotension
terazosin | alpha blocker | the alpha-1 adrenergic receptor | prostatic hyperplasia | orthostatic hypotension
prazosin | alpha blocker | the alpha-1 adrenergic receptor | hypertension | orthostatic hypotension
atorvastatin | cholesterol synthesis inhibitor | HMG-CoA reductase | hypercholesterolemia | muscle damage
simvastatin | cholesterol synthesis inhibitor | HMG-CoA reductase | hypercholesterolemia | muscle damage
rosuvastatin | cholesterol synthesis inhibitor | HMG-CoA reductase | hypercholesterolemia | muscle damage
pravastatin | cholesterol synthesis inhibitor | HMG-CoA reductase | hypercholesterolemia | muscle damage
amiodarone | antiarrhythmic | the hERG potassium channel | ventricular tachycardia | pulmonary fibrosis
dofetilide | antiarrhythmic | the hERG potassium channel | atrial fibrillation | QT prolongation
lidocaine | antiarrhythmic | the voltage-gated sodium channel | ventricular tachycardia | seizures
warfarin | anticoagulant | vitamin K epoxide reductase | atrial fibrillation | bleeding
heparin | anticoagulant | antithrombin | venous thrombosis | thrombocytopenia
enoxaparin | anticoagulant | antithrombin | venous thrombosis | bleeding
rivaroxaban | anticoagulant | factor Xa | venous thrombosis | bleeding
dabigatran | anticoagulant | thrombin | atrial fibrillation | bleeding
clopidogrel | antiplatelet agent | the P2Y12 receptor | acute coronary syndrome | bleeding
prasugrel | antiplatelet agent | the P2Y12 receptor | acute coronary syndrome | bleeding
ticagrelor | antiplatelet agent | the P2Y12 receptor | acute coronary syndrome | dyspnea
glipizide | sulfonylurea | the ATP-sensitive potassium channel | type 2 diabetes | hypoglycemia
glyburide | sulfonylurea | the ATP-sensitive potassium channel | type 2 diabetes | hypoglycemia
glimepiride | sulfonylurea | the ATP-sensitive potassium channel | type 2 diabetes | hypoglycemia
sitagliptin | incretin enhancer | dipeptidyl peptidase-4 | type 2 diabetes | pancreatitis
saxagliptin | incretin enhancer | dipeptidyl peptidase-4 | type 2 diabetes | pancreatitis
linagliptin | incretin enhancer | dipeptidyl peptidase-4 | type 2 diabetes | pancreatitis
amoxicillin | beta-lactam antibiotic | cell-wall transpeptidase | otitis media | anaphylaxis
ampicillin | beta-lactam antibiotic | cell-wall transpeptidase | bacterial meningitis | anaphylaxis
ceftriaxone | beta-lactam antibiotic | cell-wall transpeptidase | gonorrhea | biliary sludge
cephalexin | beta-lactam antibiotic | cell-wall transpeptidase | cellulitis | anaphylaxis
meropenem | beta-lactam antibiotic | cell-wall transpeptidase | sepsis | seizures
erythromycin | protein synthesis inhibitor | the 50S ribosomal subunit | whooping cough | QT prolongation
azithromycin | protein synthesis inhibitor | the 50S ribosomal subunit | bacterial pneumonia | QT prolongation
clarithromycin | protein synthesis inhibitor | the 50S ribosomal subunit | bacterial pneumonia | QT prolongation
clindamycin | protein synthesis inhibitor | the 50S ribosomal subunit | cellulitis | pseudomembranous colitis
chloramphenicol | protein synthesis inhibitor | the 50S ribosomal subunit | bacterial meningitis | aplastic anemia
doxycycline | protein synthesis inhibitor | the 30S ribosomal subunit | Lyme disease | photosensitivity
gentamicin | protein synthesis inhibitor | the 30S ribosomal subunit | sepsis | ototoxicity
amikacin | protein synthesis inhibitor | the 30S ribosomal subunit | sepsis | ototoxicity
ciprofloxacin | fluoroquinolone | DNA gyrase | pyelonephritis | tendon rupture
levofloxacin | fluoroquinolone | DNA gyrase | bacterial pneumonia | tendon rupture
moxifloxacin | fluoroquinolone | DNA gyrase | bacterial pneumonia | QT prolongation
isoniazid | antimycobacterial agent | mycolic acid synthesis | tuberculosis | peripheral neuropathy
rifampin | antimycobacterial agent | bacterial RNA polymerase | tuberculosis | orange urine
ethambutol | antimycobacterial agent | arabinosyl transferase | tuberculosis | optic neuritis
dapsone | antimycobacterial agent | dihydropteroate synthase | leprosy | hemolytic anemia
fluconazole | antifungal agent | lanosterol demethylase | candidiasis | hepatotoxicity
itraconazole | antifungal agent | lanosterol demethylase | histoplasmosis | hepatotoxicity
voriconazole | antifungal agent | lanosterol demethylase | aspergillosis | visual disturbance
terbinafine | antifungal agent | squalene epoxidase | fungal nail infection | loss of taste
acyclovir | nucleoside analogue | viral DNA polymerase | herpes zoster | nephrotoxicity
zidovudine | nucleoside analogue | reverse transcriptase | HIV infection | anemia
abacavir | nucleoside analogue | reverse transcriptase | HIV infection | hypersensitivity
stavudine | nucleoside analogue | reverse transcriptase | HIV infection | peripheral neuropathy
didanosine | nucleoside analogue | reverse transcriptase | HIV infection | pancreatitis
omeprazole | proton pump inhibitor | the gastric H+/K+ ATPase | peptic ulcer | hypomagnesemia
lansoprazole | proton pump inhibitor | the gastric H+/K+ ATPase | acid reflux | hypomagnesemia
pantoprazole | proton pump inhibitor | the gastric H+/K+ ATPase | acid reflux | hypomagnesemia
sumatriptan | serotonin agonist | the 5-HT1B receptor | migraine | chest tightness
rizatriptan | serotonin agonist | the 5-HT1B receptor | migraine | chest tightness
zolmitriptan | serotonin agonist | the 5-HT1B receptor | migraine | chest tightness
fluoxetine | serotonin reuptake inhibitor | the serotonin transporter | depression | sexual dysfunction
sertraline | serotonin reuptake inhibitor | the serotonin transporter | depression | sexual dysfunction
paroxetine | serotonin reuptake inhibitor | the serotonin transporter | panic disorder | sexual dysfunction
citalopram | serotonin reuptake inhibitor | the serotonin transporter | depression | QT prolongation
haloperidol | antipsychotic | the dopamine D2 receptor | schizophrenia | parkinsonism
risperidone | antipsychotic | the dopamine D2 receptor | schizophrenia | hyperprolactinemia
olanzapine | antipsychotic | the dopamine D2 receptor | schizophrenia | weight gain
quetiapine | antipsychotic | the dopamine D2 receptor | bipolar disorder | weight gain
lorazepam | sedative-hypnotic | the GABA-A receptor | status epilepticus | respiratory depression
alprazolam | sedative-hypnotic | the GABA-A receptor | panic disorder | drowsiness
phenobarbital | sedative-hypnotic | the GABA-A receptor | epilepsy | drowsiness
phenytoin | anticonvulsant | the voltage-gated sodium channel | epilepsy | gum overgrowth
carbamazepine | anticonvulsant | the voltage-gated sodium channel | trigeminal neuralgia | hyponatremia
lamotrigine | anticonvulsant | the voltage-gated sodium channel | bipolar disorder | Stevens-Johnson syndrome
gabapentin | anticonvulsant | the alpha-2-delta subunit | neuropathic pain | drowsiness
pregabalin | anticonvulsant | the alpha-2-delta subunit | neuropathic pain | weight gain
morphine | opioid agonist | the mu opioid receptor | severe pain | respiratory depression
fentanyl | opioid agonist | the mu opioid receptor | severe pain | respiratory depression
oxycodone | opioid agonist | the mu opioid receptor | severe pain | constipation
donepezil | cholinesterase inhibitor | acetylcholinesterase | Alzheimer disease | bradycardia
rivastigmine | cholinesterase inhibitor | acetylcholinesterase | Alzheimer disease | nausea
tiotropium | antimuscarinic | the muscarinic receptor | chronic obstructive pulmonary disease | dry mouth
oxybutynin | antimuscarinic | the muscarinic receptor | overactive bladder | dry mouth
tolterodine | antimuscarinic | the muscarinic receptor | overactive bladder | dry mouth
salbutamol | bronchodilator | the beta-2 adrenergic receptor | asthma | tremor
salmeterol | bronchodilator | the beta-2 adrenergic receptor | asthma | tremor
formoterol | bronchodilator | the beta-2 adrenergic receptor | asthma | tremor
prednisone | corticosteroid | the glucocorticoid receptor | polymyalgia rheumatica | osteoporosis
dexamethasone | corticosteroid | the glucocorticoid receptor | brain edema | hyperglycemia
fluticasone | corticosteroid | the glucocorticoid receptor | asthma | oral thrush
betamethasone | corticosteroid | the glucocorticoid receptor | psoriasis | skin atrophy
naproxen | nonsteroidal anti-inflammatory drug | cyclooxygenase | osteoarthritis | gastric bleeding
diclofenac | nonsteroidal anti-inflammatory drug | cyclooxygenase | osteoarthritis | gastric bleeding
ibuprofen | nonsteroidal anti-inflammatory drug | cyclooxygenase | menstrual pain | gastric bleeding
indomethacin | nonsteroidal anti-inflammatory drug | cyclooxygenase | gout | gastric bleeding
allopurinol | urate-lowering drug | xanthine oxidase | gout | Stevens-Johnson syndrome
febuxostat | urate-lowering drug | xanthine oxidase | gout | hepatotoxicity
probenecid | urate-lowering drug | the URAT1 transporter | gout | kidney stones
alendronate | bone resorption inhibitor | farnesyl pyrophosphate synthase | osteoporosis | esophagitis
risedronate | bone resorption inhibitor | farnesyl pyrophosphate synthase | osteoporosis | esophagitis
zoledronate | bone resorption inhibitor | farnesyl pyrophosphate synthase | osteoporosis | jaw necrosis
cyclosporine | immunosuppressant | calcineurin | transplant rejection | nephrotoxicity
tacrolimus | immunosuppressant | calcineurin | transplant rejection | nephrotoxicity
sirolimus | immunosuppressant | mTOR | transplant rejection | hyperlipidemia
letrozole | estrogen-blocking drug | aromatase | breast cancer | osteoporosis
anastrozole | estrogen-blocking drug | aromatase | breast cancer | osteoporosis
tamoxifen | estrogen-blocking drug | the estrogen receptor | breast cancer | endometrial cancer
raloxifene | estrogen-blocking drug | the estrogen receptor | osteoporosis | venous thrombosis
bicalutamide | androgen-blocking drug | the androgen receptor | prostate cancer | gynecomastia
enzalutamide | androgen-blocking drug | the androgen receptor | prostate cancer | seizures
finasteride | androgen-blocking drug | 5-alpha reductase | prostatic hyperplasia | sexual dysfunction
imatinib | kinase inhibitor | BCR-ABL | chronic myeloid leukemia | fluid retention
dasatinib | kinase inhibitor | BCR-ABL | chronic myeloid leukemia | pleural effusion
nilotinib | kinase inhibitor | BCR-ABL | chronic myeloid leukemia | QT prolongation
erlotinib | kinase inhibitor | EGFR | lung cancer | acne-like rash
gefitinib | kinase inhibitor | EGFR | lung cancer | acne-like rash
trastuzumab | monoclonal antibody | HER2 | breast cancer | cardiomyopathy
cetuximab | monoclonal antibody | EGFR | colorectal cancer | acne-like rash
rituximab | monoclonal antibody | CD20 | lymphoma | infusion reaction
ocrelizumab | monoclonal antibody | CD20 | multiple sclerosis | infusion reaction
infliximab | monoclonal antibody | TNF-alpha | Crohn disease | reactivated tuberculosis
adalimumab | monoclonal antibody | TNF-alpha | rheumatoid arthritis | reactivated tuberculosis
nivolumab | monoclonal antibody | PD-1 | melanoma | autoimmune colitis
pembrolizumab | monoclonal antibody | PD-1 | lung cancer | autoimmune colitis
cyclophosphamide | DNA-crosslinking agent | DNA guanine | lymphoma | hemorrhagic cystitis
ifosfamide | DNA-crosslinking agent | DNA guanine | sarcoma | hemorrhagic cystitis
cisplatin | DNA-crosslinking agent | DNA guanine | testicular cancer | ototoxicity
carboplatin | DNA-crosslinking agent | DNA guanine | ovarian cancer | thrombocytopenia
oxaliplatin | DNA-crosslinking agent | DNA guanine | colorectal cancer | peripheral neuropathy
methotrexate | antimetabolite | dihydrofolate reductase | rheumatoid arthritis | hepatotoxicity
fluorouracil | antimetabolite | thymidylate synthase | colorectal cancer | sore mouth
gemcitabine | antimetabolite | ribonucleotide reductase | pancreatic cancer | thrombocytopenia
vincristine | microtubule-targeting drug | tubulin | lymphoma | peripheral neuropathy
paclitaxel | microtubule-targeting drug | tubulin | ovarian cancer | peripheral neuropathy
doxorubicin | topoisomerase inhibitor | topoisomerase II | breast cancer | cardiomyopathy
daunorubicin | topoisomerase inhibitor | topoisomerase II | acute leukemia | cardiomyopathy
irinotecan | topoisomerase inhibitor | topoisomerase I | colorectal cancer | diarrhea
topotecan | topoisomerase inhibitor | topoisomerase I | ovarian cancer | neutropenia
"""
FACTS["microbe"] = """
Staphylococcus aureus | round Gram-positive bacterium | skin contact | skin abscess | flucloxacillin
Streptococcus pyogenes | round Gram-positive bacterium | respiratory droplets | sore throat | penicillin
Streptococcus pneumoniae | round Gram-positive bacterium | respiratory droplets | meningitis | ceftriaxone
Streptococcus agalactiae | round Gram-positive bacterium | the birth canal | newborn sepsis | penicillin
Enterococcus faecalis | round Gram-positive bacterium | the patient's own gut | urinary tract infection | ampicillin
Clostridium tetani | Gram-positive rod | soil in wounds | muscle spasms | metronidazole
Clostridium perfringens | Gram-positive rod | soil in wounds | gas gangrene | penicillin
Listeria monocytogenes | Gram-positive rod | contaminated food | meningitis | ampicillin
Corynebacterium diphtheriae | Gram-positive rod | respiratory droplets | sore throat | penicillin
Mycobacterium tuberculosis | acid-fast rod | respiratory droplets | lung cavities | isoniazid
Mycobacterium leprae | acid-fast rod | respiratory droplets | numb skin patches | dapsone
Escherichia coli | Gram-negative rod | the patient's own gut | urinary tract infection | nitrofurantoin
Proteus mirabilis | Gram-negative rod | the patient's own gut | urinary tract infection | -
Salmonella typhi | Gram-negative rod | contaminated food | enteric fever | ceftriaxone
Shigella flexneri | Gram-negative rod | contaminated food | bloody diarrhea | ciprofloxacin
Pseudomonas aeruginosa | Gram-negative rod | contaminated water | pneumonia | ceftazidime
Legionella pneumophila | Gram-negative rod | contaminated water | - | levofloxacin
Vibrio cholerae | curved Gram-negative rod | contaminated water | watery diarrhea | doxycycline
Vibrio vulnificus | curved Gram-negative rod | raw shellfish | wound infection | doxycycline
Campylobacter jejuni | curved Gram-negative rod | undercooked poultry | bloody diarrhea | azithromycin
Helicobacter pylori | curved Gram-negative rod | - | peptic ulcer | clarithromycin
Francisella tularensis | Gram-negative coccobacillus | tick bites | swollen lymph nodes | streptomycin
Yersinia pestis | Gram-negative coccobacillus | flea bites | swollen lymph nodes | streptomycin
Pasteurella multocida | Gram-negative coccobacillus | cat bites and scratches | wound infection | penicillin
Bordetella pertussis | Gram-negative coccobacillus | respiratory droplets | whooping cough | azithromycin
Haemophilus ducreyi | Gram-negative coccobacillus | sexual contact | genital ulcer | azithromycin
Neisseria gonorrhoeae | round Gram-negative bacterium | sexual contact | urethritis | ceftriaxone
Neisseria meningitidis | round Gram-negative bacterium | respiratory droplets | - | ceftriaxone
Moraxella catarrhalis | round Gram-negative bacterium | respiratory droplets | otitis media | -
Treponema pallidum | spirochete | sexual contact | genital ulcer | penicillin
Borrelia burgdorferi | spirochete | tick bites | bull's-eye rash | doxycycline
Leptospira interrogans | spirochete | contaminated water | jaundice | penicillin
Rickettsia rickettsii | obligate intracellular bacterium | tick bites | spotted fever | doxycycline
Rickettsia prowazekii | obligate intracellular bacterium | louse bites | typhus | doxycycline
Chlamydia trachomatis | obligate intracellular bacterium | sexual contact | urethritis | doxycycline
Chlamydia psittaci | obligate intracellular bacterium | bird droppings | pneumonia | doxycycline
Coxiella burnetii | obligate intracellular bacterium | farm animals | pneumonia | doxycycline
Candida albicans | yeast | the patient's own gut | oral thrush | fluconazole
Cryptococcus neoformans | yeast | bird droppings | meningitis | amphotericin B
Histoplasma capsulatum | dimorphic fungus | bird droppings | pneumonia | itraconazole
Blastomyces dermatitidis | dimorphic fungus | inhaled spores | pneumonia | itraconazole
Aspergillus fumigatus | mold | inhaled spores | lung cavities | voriconazole
Plasmodium falciparum | protozoan | mosquito bites | malaria | artesunate
Plasmodium vivax | protozoan | mosquito bites | malaria | chloroquine
Toxoplasma gondii | protozoan | cat feces | brain abscess | pyrimethamine
Entamoeba histolytica | protozoan | contaminated water | bloody diarrhea | metronidazole
Giardia lamblia | protozoan | contaminated water | fatty diarrhea | metronidazole
Ascaris lumbricoides | roundworm | contaminated food | bowel obstruction | albendazole
Necator americanus | roundworm | barefoot walking | iron deficiency anemia | albendazole
Ancylostoma duodenale | roundworm | barefoot walking | iron deficiency anemia | albendazole
Echinococcus granulosus | tapeworm | dog feces | liver cyst | albendazole
Schistosoma haematobium | fluke | contaminated water | bladder cancer | praziquantel
Schistosoma mansoni | fluke | contaminated water | swollen spleen | praziquantel
"""
FACTS["gene"] = """
KCNQ1 | ion channel | long QT syndrome | chromosome 11 | the heart
KCNH2 | ion channel | long QT syndrome | chromosome 7 | the heart
SCN5A | ion channel | Brugada syndrome | chromosome 3 | the heart
RYR1 | ion channel | malignant hyperthermia | chromosome 19 | skeletal muscle
CFTR | ion channel | cystic fibrosis | chromosome 7 | the lung
PKD2 | ion channel | polycystic kidney disease | chromosome 4 | the kidney
MYH7 | sarcomere protein | hypertrophic cardiomyopathy | chromosome 14 | the heart
MYBPC3 | sarcomere protein | hypertrophic cardiomyopathy | chromosome 11 | the heart
TTN | sarcomere protein | dilated cardiomyopathy | chromosome 2 | the heart
DMD | cytoskeletal protein | muscular dystrophy | the X chromosome | skeletal muscle
LMNA | intermediate filament protein | dilated cardiomyopathy | chromosome 1 | the heart
KRT5 | intermediate filament protein | epidermolysis bullosa | chromosome 12 | the skin
KRT14 | intermediate filament protein | epidermolysis bullosa | chromosome 17 | the skin
COL1A1 | collagen | osteogenesis imperfecta | chromosome 17 | bone
COL1A2 | collagen | osteogenesis imperfecta | chromosome 7 | bone
COL4A3 | collagen | Alport syndrome | chromosome 2 | the kidney
COL5A1 | collagen | Ehlers-Danlos syndrome | chromosome 9 | the skin
BRCA1 | DNA repair protein | familial breast cancer | chromosome 17 | the breast
BRCA2 | DNA repair protein | familial breast cancer | chromosome 13 | the breast
PALB2 | DNA repair protein | familial breast cancer | chromosome 16 | the breast
MLH1 | DNA repair protein | Lynch syndrome | chromosome 3 | the colon
MSH2 | DNA repair protein | Lynch syndrome | chromosome 2 | the colon
XPA | DNA repair protein | xeroderma pigmentosum | chromosome 9 | the skin
PAX6 | transcription factor | aniridia | chromosome 11 | the eye
HNF1A | transcription factor | maturity-onset diabetes | chromosome 12 | the pancreas
HNF4A | transcription factor | maturity-onset diabetes | chromosome 20 | the pancreas
GATA4 | transcription factor | atrial septal defect | chromosome 8 | the heart
FGFR3 | receptor tyrosine kinase | achondroplasia | chromosome 4 | bone
RET | receptor tyrosine kinase | medullary thyroid cancer | chromosome 10 | the thyroid
MET | receptor tyrosine kinase | papillary kidney cancer | chromosome 7 | the kidney
VHL | ubiquitin ligase | clear cell kidney cancer | chromosome 3 | the kidney
PRKN | ubiquitin ligase | Parkinson disease | chromosome 6 | the brain
LRRK2 | serine/threonine kinase | Parkinson disease | chromosome 12 | the brain
PINK1 | serine/threonine kinase | Parkinson disease | chromosome 1 | the brain
HTT | polyglutamine protein | Huntington disease | chromosome 4 | the brain
ATXN2 | polyglutamine protein | spinocerebellar ataxia | chromosome 12 | the cerebellum
ATXN3 | polyglutamine protein | spinocerebellar ataxia | chromosome 14 | the cerebellum
TARDBP | RNA-binding protein | amyotrophic lateral sclerosis | chromosome 1 | motor neurons
FUS | RNA-binding protein | amyotrophic lateral sclerosis | chromosome 16 | motor neurons
SMN1 | - | spinal muscular atrophy | chromosome 5 | motor neurons
PMP22 | myelin protein | Charcot-Marie-Tooth disease | chromosome 17 | peripheral nerves
MPZ | myelin protein | Charcot-Marie-Tooth disease | chromosome 1 | peripheral nerves
GJB1 | gap junction protein | Charcot-Marie-Tooth disease | the X chromosome | peripheral nerves
GJB2 | gap junction protein | hereditary deafness | chromosome 13 | the inner ear
F8 | clotting factor | hemophilia | the X chromosome | blood
F9 | clotting factor | hemophilia | the X chromosome | blood
F5 | clotting factor | venous thrombosis | chromosome 1 | blood
HBB | globin | sickle cell disease | chromosome 11 | blood
ATP7B | membrane transporter | Wilson disease | chromosome 13 | the liver
SLC26A4 | membrane transporter | hereditary deafness | chromosome 7 | the inner ear
ABCA4 | membrane transporter | Stargardt disease | chromosome 1 | the eye
RHO | G protein-coupled receptor | retinitis pigmentosa | chromosome 3 | the eye
AVPR2 | G protein-coupled receptor | nephrogenic diabetes insipidus | the X chromosome | the kidney
HEXA | lysosomal enzyme | Tay-Sachs disease | chromosome 15 | the brain
GAA | lysosomal enzyme | Pompe disease | chromosome 17 | skeletal muscle
GLA | lysosomal enzyme | Fabry disease | the X chromosome | the kidney
"""
FACTS["enzyme"] = """
hexokinase | glycolysis | magnesium | hemolytic anemia
pyruvate kinase | glycolysis | magnesium | hemolytic anemia
phosphofructokinase | glycolysis | magnesium | muscle cramps
pyruvate dehydrogenase | - | vitamin B1 | lactic acidosis
alpha-ketoglutarate dehydrogenase | the citric acid cycle | vitamin B1 | -
succinate dehydrogenase | the citric acid cycle | vitamin B2 | paraganglioma
malate dehydrogenase | the citric acid cycle | NAD+ | -
aconitase | the citric acid cycle | iron-sulfur clusters | -
pyruvate carboxylase | gluconeogenesis | biotin | lactic acidosis
fructose-1,6-bisphosphatase | gluconeogenesis | magnesium | fasting hypoglycemia
glucose-6-phosphate dehydrogenase | the pentose shunt | NADP+ | hemolytic anemia
transketolase | the pentose shunt | vitamin B1 | -
ornithine transcarbamylase | the urea cycle | - | hyperammonemia
argininosuccinate lyase | the urea cycle | - | hyperammonemia
arginase | the urea cycle | manganese | spastic legs
myophosphorylase | glycogen breakdown | vitamin B6 | muscle cramps
medium-chain acyl-CoA dehydrogenase | fatty acid oxidation | vitamin B2 | fasting hypoglycemia
propionyl-CoA carboxylase | amino acid breakdown | biotin | hyperammonemia
homogentisate oxidase | amino acid breakdown | iron | dark urine
phenylalanine hydroxylase | amino acid breakdown | BH4 | intellectual disability
cystathionine beta-synthase | amino acid breakdown | vitamin B6 | lens dislocation
tyrosine hydroxylase | catecholamine production | BH4 | dystonia
DOPA decarboxylase | catecholamine production | vitamin B6 | -
tyrosinase | pigment production | copper | albinism
ALA synthase | heme production | vitamin B6 | sideroblastic anemia
ALA dehydratase | heme production | zinc | abdominal pain
porphobilinogen deaminase | heme production | - | abdominal pain
uroporphyrinogen decarboxylase | heme production | - | photosensitivity
ferrochelatase | heme production | iron-sulfur clusters | photosensitivity
adenosine deaminase | purine degradation | zinc | severe immunodeficiency
xanthine oxidase | purine degradation | molybdenum | kidney stones
catalase | radical scavenging | heme | -
glutathione peroxidase | radical scavenging | selenium | -
superoxide dismutase | radical scavenging | copper | -
glutathione reductase | radical scavenging | vitamin B2 | hemolytic anemia
"""
FACTS["nutrient"] = """
thiamine | carbohydrate metabolism | beriberi | pork
riboflavin | redox reactions | cracked lips | milk
niacin | redox reactions | pellagra | poultry
folate | cell division | macrocytic anemia | leafy vegetables
cobalamin | myelin maintenance | macrocytic anemia | meat
ascorbic acid | collagen formation | scurvy | citrus fruit
retinol | vision | night blindness | liver
cholecalciferol | bone mineralization | rickets | oily fish
tocopherol | protection from oxidation | neuropathy | vegetable oil
phylloquinone | blood clotting | bleeding | leafy vegetables
iron | oxygen transport | microcytic anemia | meat
iodine | thyroid hormone formation | goiter | seaweed
zinc | cell division | poor wound healing | oysters
copper | collagen formation | neutropenia | liver
selenium | protection from oxidation | cardiomyopathy | Brazil nuts
calcium | bone mineralization | tetany | milk
fluoride | tooth enamel | tooth decay | tea
potassium | nerve conduction | muscle weakness | bananas
magnesium | nerve conduction | tetany | nuts
"""

# A value of FACTS | the entities, or first values (a drug class, a type of microbe), for which it is right as well or
# half right: there it is never offered as a wrong answer. Nor is, for a drug, what another drug of its class has.
ALSO_TRUE = """
nucleoside analogue | antimetabolite
antimetabolite | nucleoside analogue
immunosuppressant | corticosteroid, antimetabolite, monoclonal antibody
corticosteroid | immunosuppressant
kinase inhibitor | immunosuppressant
sedative-hypnotic | anticonvulsant, opioid agonist
anticonvulsant | sedative-hypnotic
antiarrhythmic | beta blocker, calcium channel blocker
antimycobacterial agent | fluoroquinolone, protein synthesis inhibitor
bone resorption inhibitor | estrogen-blocking drug
bronchodilator | antimuscarinic
topoisomerase inhibitor | fluoroquinolone
hypertension | beta blocker, ACE inhibitor, angiotensin receptor blocker, calcium channel blocker, loop diuretic,
    alpha blocker
heart failure | beta blocker, ACE inhibitor, angiotensin receptor blocker, loop diuretic
diabetic nephropathy | ACE inhibitor, angiotensin receptor blocker
angina | beta blocker, calcium channel blocker
acute coronary syndrome | beta blocker, anticoagulant, cholesterol synthesis inhibitor, ACE inhibitor, opioid
    agonist
atrial fibrillation | beta blocker, calcium channel blocker, anticoagulant, antiarrhythmic
supraventricular tachycardia | beta blocker, antiarrhythmic
ventricular tachycardia | beta blocker
migraine | beta blocker, calcium channel blocker, anticonvulsant, nonsteroidal anti-inflammatory drug
sepsis | beta-lactam antibiotic, protein synthesis inhibitor, fluoroquinolone
bacterial pneumonia | beta-lactam antibiotic, protein synthesis inhibitor, fluoroquinolone
bacterial meningitis | beta-lactam antibiotic, protein synthesis inhibitor, fluoroquinolone, corticosteroid
cellulitis | beta-lactam antibiotic, protein synthesis inhibitor, fluoroquinolone
pyelonephritis | beta-lactam antibiotic, protein synthesis inhibitor, fluoroquinolone
otitis media | beta-lactam antibiotic, protein synthesis inhibitor, fluoroquinolone, Streptococcus pneumoniae,
    Streptococcus pyogenes, Pseudomonas aeruginosa, Staphylococcus aureus
gonorrhea | beta-lactam antibiotic, protein synthesis inhibitor, fluoroquinolone
Lyme disease | beta-lactam antibiotic, protein synthesis inhibitor
tuberculosis | protein synthesis inhibitor, fluoroquinolone, corticosteroid, beta-lactam antibiotic
leprosy | protein synthesis inhibitor, fluoroquinolone
asthma | corticosteroid, antimuscarinic, monoclonal antibody
chronic obstructive pulmonary disease | bronchodilator, corticosteroid
rheumatoid arthritis | nonsteroidal anti-inflammatory drug, corticosteroid, immunosuppressant, DNA-crosslinking
    agent
multiple sclerosis | corticosteroid, immunosuppressant, DNA-crosslinking agent
Crohn disease | corticosteroid, immunosuppressant, antimetabolite
psoriasis | immunosuppressant, antimetabolite, monoclonal antibody
transplant rejection | corticosteroid, antimetabolite, monoclonal antibody
gout | nonsteroidal anti-inflammatory drug, corticosteroid
osteoarthritis | corticosteroid, opioid agonist
severe pain | nonsteroidal anti-inflammatory drug
menstrual pain | opioid agonist
depression | antipsychotic
panic disorder | serotonin reuptake inhibitor
epilepsy | sedative-hypnotic, anticonvulsant
status epilepticus | anticonvulsant
bipolar disorder | antipsychotic, anticonvulsant
prostatic hyperplasia | androgen-blocking drug, alpha blocker
osteoporosis | estrogen-blocking drug, androgen-blocking drug, bone resorption inhibitor, corticosteroid,
    anticoagulant, proton pump inhibitor, anticonvulsant
glaucoma | cholinesterase inhibitor
polymyalgia rheumatica | antimetabolite
lymphoma | corticosteroid, antimetabolite, DNA-crosslinking agent, microtubule-targeting drug, topoisomerase
    inhibitor, kinase inhibitor
acute leukemia | corticosteroid, antimetabolite, DNA-crosslinking agent, microtubule-targeting drug, kinase
    inhibitor
chronic myeloid leukemia | antimetabolite, DNA-crosslinking agent
breast cancer | antimetabolite, DNA-crosslinking agent, microtubule-targeting drug, topoisomerase inhibitor, kinase
    inhibitor, monoclonal antibody, androgen-blocking drug
lung cancer | antimetabolite, DNA-crosslinking agent, microtubule-targeting drug, topoisomerase inhibitor,
    monoclonal antibody
ovarian cancer | antimetabolite, DNA-crosslinking agent, microtubule-targeting drug, topoisomerase inhibitor,
    monoclonal antibody, estrogen-blocking drug
testicular cancer | microtubule-targeting drug, topoisomerase inhibitor
pancreatic cancer | DNA-crosslinking agent, microtubule-targeting drug, topoisomerase inhibitor, kinase inhibitor
colorectal cancer | antimetabolite, DNA-crosslinking agent, topoisomerase inhibitor, monoclonal antibody
sarcoma | antimetabolite, microtubule-targeting drug, topoisomerase inhibitor, kinase inhibitor
melanoma | DNA-crosslinking agent, kinase inhibitor, monoclonal antibody
the voltage-gated sodium channel | antiarrhythmic, anticonvulsant
bradycardia | calcium channel blocker, cholinesterase inhibitor, antiarrhythmic, opioid agonist
orthostatic hypotension | beta blocker, ACE inhibitor, angiotensin receptor blocker, calcium channel blocker, loop
    diuretic, antipsychotic, opioid agonist, sedative-hypnotic
hyperkalemia | beta blocker, ACE inhibitor, anticoagulant, immunosuppressant, nonsteroidal anti-inflammatory drug
angioedema | angiotensin receptor blocker, nonsteroidal anti-inflammatory drug, beta-lactam antibiotic
hypokalemia | corticosteroid, bronchodilator, beta-lactam antibiotic, proton pump inhibitor
hypoglycemia | beta blocker, fluoroquinolone, incretin enhancer, ACE inhibitor
hyponatremia | serotonin reuptake inhibitor, loop diuretic, DNA-crosslinking agent, ACE inhibitor, antipsychotic
hypomagnesemia | loop diuretic, DNA-crosslinking agent, immunosuppressant, monoclonal antibody
constipation | opioid agonist, antimuscarinic, antipsychotic, microtubule-targeting drug, serotonin reuptake
    inhibitor, proton pump inhibitor
drowsiness | opioid agonist, antipsychotic, anticonvulsant, sedative-hypnotic, serotonin agonist, serotonin reuptake
    inhibitor, beta blocker, antimuscarinic
dry mouth | antipsychotic, opioid agonist, serotonin reuptake inhibitor, loop diuretic
nausea | opioid agonist, cholinesterase inhibitor, serotonin reuptake inhibitor, serotonin agonist, protein
    synthesis inhibitor, fluoroquinolone, beta-lactam antibiotic, antimetabolite, DNA-crosslinking agent,
    microtubule-targeting drug, topoisomerase inhibitor, antimycobacterial agent, nucleoside analogue, kinase
    inhibitor, anticonvulsant, antiarrhythmic
diarrhea | cholinesterase inhibitor, serotonin reuptake inhibitor, protein synthesis inhibitor, fluoroquinolone,
    beta-lactam antibiotic, antimetabolite, DNA-crosslinking agent, microtubule-targeting drug, topoisomerase
    inhibitor, nucleoside analogue, kinase inhibitor, proton pump inhibitor, immunosuppressant
weight gain | anticonvulsant, sulfonylurea, corticosteroid, antipsychotic, serotonin reuptake inhibitor
sexual dysfunction | beta blocker, antipsychotic, opioid agonist, androgen-blocking drug
QT prolongation | protein synthesis inhibitor, fluoroquinolone, antipsychotic, serotonin reuptake inhibitor,
    antiarrhythmic, antifungal agent, kinase inhibitor, androgen-blocking drug, immunosuppressant, antimuscarinic,
    cholinesterase inhibitor
seizures | fluoroquinolone, antipsychotic, antimycobacterial agent, beta-lactam antibiotic, immunosuppressant
hepatotoxicity | antimycobacterial agent, antimetabolite, cholesterol synthesis inhibitor, kinase inhibitor,
    anticonvulsant, androgen-blocking drug, estrogen-blocking drug, nonsteroidal anti-inflammatory drug, nucleoside
    analogue, protein synthesis inhibitor, beta-lactam antibiotic, antiarrhythmic, microtubule-targeting drug,
    urate-lowering drug, immunosuppressant
nephrotoxicity | protein synthesis inhibitor, nonsteroidal anti-inflammatory drug, immunosuppressant,
    DNA-crosslinking agent, ACE inhibitor, angiotensin receptor blocker, antimetabolite, bone resorption inhibitor,
    loop diuretic, beta-lactam antibiotic, proton pump inhibitor
ototoxicity | protein synthesis inhibitor, DNA-crosslinking agent
peripheral neuropathy | nucleoside analogue, microtubule-targeting drug, DNA-crosslinking agent, fluoroquinolone,
    antiarrhythmic, immunosuppressant
thrombocytopenia | antiplatelet agent, DNA-crosslinking agent, topoisomerase inhibitor, microtubule-targeting drug,
    anticonvulsant, nucleoside analogue, kinase inhibitor
neutropenia | antimetabolite, DNA-crosslinking agent, microtubule-targeting drug, nucleoside analogue, kinase
    inhibitor, antipsychotic, beta-lactam antibiotic, immunosuppressant, cobalamin, folate
anemia | antimetabolite, DNA-crosslinking agent, microtubule-targeting drug, topoisomerase inhibitor, kinase
    inhibitor, protein synthesis inhibitor
aplastic anemia | anticonvulsant, DNA-crosslinking agent, antimetabolite
hemolytic anemia | beta-lactam antibiotic, antimycobacterial agent, phosphofructokinase
bleeding | nonsteroidal anti-inflammatory drug, serotonin reuptake inhibitor, kinase inhibitor, antiplatelet agent,
    ascorbic acid
gastric bleeding | anticoagulant, antiplatelet agent, corticosteroid, serotonin reuptake inhibitor
hyperglycemia | antipsychotic, immunosuppressant, loop diuretic, cholesterol synthesis inhibitor, fluoroquinolone
hyperlipidemia | corticosteroid, antipsychotic, estrogen-blocking drug, nucleoside analogue
pancreatitis | loop diuretic, ACE inhibitor, anticonvulsant, nucleoside analogue
photosensitivity | fluoroquinolone, nonsteroidal anti-inflammatory drug, antiarrhythmic, loop diuretic, antifungal
    agent
tremor | serotonin reuptake inhibitor, immunosuppressant, antiarrhythmic, anticonvulsant, antipsychotic
respiratory depression | opioid agonist, sedative-hypnotic
Stevens-Johnson syndrome | anticonvulsant, beta-lactam antibiotic, nonsteroidal anti-inflammatory drug, nucleoside
    analogue
kidney stones | anticonvulsant, loop diuretic
cardiomyopathy | monoclonal antibody, kinase inhibitor, thiamine, calcium, immunosuppressant
anaphylaxis | monoclonal antibody, nonsteroidal anti-inflammatory drug, fluoroquinolone, microtubule-targeting drug,
    DNA-crosslinking agent
hypersensitivity | beta-lactam antibiotic, monoclonal antibody, DNA-crosslinking agent, microtubule-targeting drug,
    anticonvulsant, urate-lowering drug
infusion reaction | microtubule-targeting drug
acne-like rash | corticosteroid, immunosuppressant, monoclonal antibody, kinase inhibitor
visual disturbance | antimycobacterial agent, antiarrhythmic, antimuscarinic
fluid retention | nonsteroidal anti-inflammatory drug, corticosteroid, calcium channel blocker
ankle swelling | nonsteroidal anti-inflammatory drug, corticosteroid, kinase inhibitor, anticonvulsant
bronchospasm | nonsteroidal anti-inflammatory drug
dyspnea | beta blocker
pulmonary fibrosis | antimetabolite, DNA-crosslinking agent
pseudomembranous colitis | beta-lactam antibiotic, fluoroquinolone, proton pump inhibitor
tendon rupture | corticosteroid
esophagitis | protein synthesis inhibitor, nonsteroidal anti-inflammatory drug, antimetabolite
muscle damage | antipsychotic, corticosteroid, fluoroquinolone
oral thrush | beta-lactam antibiotic, protein synthesis inhibitor, immunosuppressant
venous thrombosis | estrogen-blocking drug, F8, F9
reactivated tuberculosis | corticosteroid, immunosuppressant
hyperprolactinemia | serotonin reuptake inhibitor
gynecomastia | antifungal agent, antipsychotic
sore mouth | antimetabolite, DNA-crosslinking agent, topoisomerase inhibitor, immunosuppressant, kinase inhibitor
chest tightness | bronchodilator
jaundice | Plasmodium falciparum, Plasmodium vivax, Echinococcus granulosus
skin contact | Streptococcus pyogenes, Pseudomonas aeruginosa, Treponema pallidum
contaminated food | Escherichia coli, Vibrio cholerae, Vibrio vulnificus, Campylobacter jejuni, Entamoeba
    histolytica, Giardia lamblia, Toxoplasma gondii, Clostridium perfringens, Echinococcus granulosus,
    Staphylococcus aureus, Francisella tularensis
contaminated water | Salmonella typhi, Shigella flexneri, Campylobacter jejuni, Escherichia coli, Ascaris
    lumbricoides, Vibrio vulnificus, Toxoplasma gondii, Francisella tularensis, Necator americanus, Ancylostoma
    duodenale, Echinococcus granulosus
respiratory droplets | Yersinia pestis, Staphylococcus aureus
sexual contact | Shigella flexneri, Entamoeba histolytica, Giardia lamblia, Staphylococcus aureus
the birth canal | Chlamydia trachomatis, Neisseria gonorrhoeae, Escherichia coli, Listeria monocytogenes, Candida
    albicans
undercooked poultry | Salmonella typhi, Listeria monocytogenes, Clostridium perfringens, Toxoplasma gondii
tick bites | Coxiella burnetii
farm animals | Leptospira interrogans, Campylobacter jejuni, Escherichia coli, Francisella tularensis, Listeria
    monocytogenes, Chlamydia psittaci, Echinococcus granulosus
cat bites and scratches | Francisella tularensis, Yersinia pestis
flea bites | Rickettsia prowazekii
the patient's own gut | Clostridium perfringens, Streptococcus agalactiae
pneumonia | Staphylococcus aureus, Streptococcus pyogenes, Streptococcus agalactiae, Mycobacterium tuberculosis,
    Escherichia coli, Yersinia pestis, Francisella tularensis, Moraxella catarrhalis, Cryptococcus neoformans,
    Aspergillus fumigatus, Bordetella pertussis, Chlamydia trachomatis, Ascaris lumbricoides, Toxoplasma gondii,
    Streptococcus pneumoniae, Enterococcus faecalis, Proteus mirabilis
meningitis | Streptococcus agalactiae, Escherichia coli, Mycobacterium tuberculosis, Treponema pallidum, Borrelia
    burgdorferi, Leptospira interrogans, Staphylococcus aureus, Candida albicans, Histoplasma capsulatum,
    Blastomyces dermatitidis, Toxoplasma gondii, Yersinia pestis, Proteus mirabilis
urinary tract infection | Pseudomonas aeruginosa, Streptococcus agalactiae, Staphylococcus aureus, Candida albicans,
    Chlamydia trachomatis, Neisseria gonorrhoeae
urethritis | Escherichia coli
skin abscess | Streptococcus pyogenes, Pasteurella multocida, Blastomyces dermatitidis, Pseudomonas aeruginosa,
    Enterococcus faecalis
wound infection | Staphylococcus aureus, Streptococcus pyogenes, Clostridium perfringens, Clostridium tetani,
    Pseudomonas aeruginosa, Escherichia coli, Enterococcus faecalis, Corynebacterium diphtheriae
sore throat | Neisseria gonorrhoeae, Francisella tularensis, Candida albicans
brain abscess | Staphylococcus aureus, Streptococcus pneumoniae, Cryptococcus neoformans, Aspergillus fumigatus,
    Entamoeba histolytica, Listeria monocytogenes, Proteus mirabilis
bloody diarrhea | Escherichia coli, Schistosoma mansoni, Salmonella typhi
watery diarrhea | Escherichia coli, Clostridium perfringens, Giardia lamblia, Salmonella typhi, Shigella flexneri,
    Campylobacter jejuni, Vibrio vulnificus
newborn sepsis | Escherichia coli, Listeria monocytogenes, Staphylococcus aureus
swollen lymph nodes | Mycobacterium tuberculosis, Toxoplasma gondii, Treponema pallidum, Haemophilus ducreyi,
    Chlamydia trachomatis, Streptococcus pyogenes, Histoplasma capsulatum, Corynebacterium diphtheriae, Borrelia
    burgdorferi, Blastomyces dermatitidis
swollen spleen | Plasmodium falciparum, Plasmodium vivax, Salmonella typhi, Histoplasma capsulatum, Rickettsia
    rickettsii, Leptospira interrogans
enteric fever | Yersinia pestis
iron deficiency anemia | Helicobacter pylori, Ascaris lumbricoides, Plasmodium falciparum, Schistosoma haematobium
lung cavities | Staphylococcus aureus, Histoplasma capsulatum, Blastomyces dermatitidis, Pseudomonas aeruginosa
gas gangrene | Clostridium tetani
genital ulcer | Chlamydia trachomatis
peptic ulcer | proton pump inhibitor
whooping cough | protein synthesis inhibitor
doxycycline | Yersinia pestis, Francisella tularensis, Leptospira interrogans, Treponema pallidum, Staphylococcus
    aureus, Plasmodium falciparum, Plasmodium vivax, Pasteurella multocida, Helicobacter pylori, Clostridium tetani,
    Neisseria gonorrhoeae, Moraxella catarrhalis, Legionella pneumophila
penicillin | Neisseria meningitidis, Borrelia burgdorferi, Clostridium tetani, Listeria monocytogenes, Enterococcus
    faecalis, Streptococcus pneumoniae, Staphylococcus aureus, Helicobacter pylori, Escherichia coli
ceftriaxone | round Gram-positive bacterium, Leptospira interrogans, Shigella flexneri, Escherichia coli, Proteus
    mirabilis, Borrelia burgdorferi, Treponema pallidum, Haemophilus ducreyi, Moraxella catarrhalis, Pasteurella
    multocida, Vibrio vulnificus, Salmonella typhi
ceftazidime | Escherichia coli, Proteus mirabilis, Vibrio vulnificus, Shigella flexneri, Salmonella typhi
ampicillin | round Gram-positive bacterium, Escherichia coli, Proteus mirabilis, Clostridium perfringens, Leptospira
    interrogans, Neisseria meningitidis, Corynebacterium diphtheriae, Pasteurella multocida, Borrelia burgdorferi,
    Treponema pallidum
azithromycin | Legionella pneumophila, Chlamydia trachomatis, Chlamydia psittaci, Salmonella typhi, Shigella
    flexneri, Vibrio cholerae, Moraxella catarrhalis, Streptococcus pyogenes, Streptococcus pneumoniae, Neisseria
    gonorrhoeae, Corynebacterium diphtheriae, Toxoplasma gondii, Helicobacter pylori, Treponema pallidum, Borrelia
    burgdorferi
clarithromycin | Legionella pneumophila, Bordetella pertussis, Campylobacter jejuni, Mycobacterium leprae,
    Streptococcus pyogenes, Streptococcus pneumoniae, Corynebacterium diphtheriae, Streptococcus agalactiae,
    Staphylococcus aureus, Haemophilus ducreyi
ciprofloxacin | Salmonella typhi, Escherichia coli, Proteus mirabilis, Pseudomonas aeruginosa, Legionella
    pneumophila, Yersinia pestis, Francisella tularensis, Vibrio cholerae, Vibrio vulnificus, Campylobacter jejuni,
    Haemophilus ducreyi, Neisseria meningitidis, Coxiella burnetii
levofloxacin | Gram-negative rod, Streptococcus pneumoniae, Yersinia pestis, Francisella tularensis, Helicobacter
    pylori, Vibrio vulnificus, Campylobacter jejuni, Chlamydia trachomatis, Chlamydia psittaci, Mycobacterium
    tuberculosis, Coxiella burnetii
metronidazole | Clostridium perfringens, Helicobacter pylori
streptomycin | Mycobacterium tuberculosis
nitrofurantoin | Enterococcus faecalis
flucloxacillin | Streptococcus pyogenes, Streptococcus agalactiae
fluconazole | Cryptococcus neoformans, dimorphic fungus
itraconazole | Candida albicans, Aspergillus fumigatus, Cryptococcus neoformans
voriconazole | Candida albicans, Cryptococcus neoformans, dimorphic fungus
amphotericin B | Candida albicans, Aspergillus fumigatus, dimorphic fungus
albendazole | Giardia lamblia
pyrimethamine | Plasmodium falciparum, Plasmodium vivax
artesunate | Plasmodium vivax
chloroquine | Plasmodium falciparum
dapsone | Plasmodium falciparum, Toxoplasma gondii
praziquantel | Echinococcus granulosus
isoniazid | Mycobacterium leprae
the brain | ATXN2, ATXN3, ATP7B, SMN1, DMD, VHL, TARDBP, FUS, PAX6, XPA
the cerebellum | VHL, LRRK2, HEXA
motor neurons | ATXN2, ATXN3, HEXA
the heart | DMD, GLA, GAA, RYR1, KCNQ1
skeletal muscle | LMNA, MYH7, TTN, SMN1, TARDBP, FUS, PMP22, MPZ, GJB1
the pancreas | CFTR, VHL, PAX6, PALB2, BRCA2, KCNQ1
the liver | CFTR, PKD2, HNF1A, HNF4A, GAA
the kidney | HNF1A, HNF4A, ATP7B, HBB, RET
the eye | VHL, COL4A3, GLA, XPA, ATP7B, ATXN3, COL1A1, COL1A2, PKD2
the inner ear | COL4A3, KCNQ1, COL1A1, COL1A2, MPZ, PMP22, FGFR3
the skin | GLA, LMNA, GJB2, COL1A1, COL1A2
bone | COL5A1, HBB, PRKN
the colon | CFTR, RET, MET
the thyroid | SLC26A4
the breast | MSH2, MLH1
the lung | MET, RET, HBB
blood | SLC26A4
peripheral nerves | ATXN2, ATXN3, LMNA, GLA, SMN1
cytoskeletal protein | intermediate filament protein, sarcomere protein
ion channel | GJB1, GJB2
membrane transporter | CFTR
DNA repair protein | ATXN3
ubiquitin ligase | BRCA1
lysosomal enzyme | ATP7B
dilated cardiomyopathy | MYH7, MYBPC3, SCN5A, DMD
hypertrophic cardiomyopathy | TTN, GLA, GAA
long QT syndrome | SCN5A
Brugada syndrome | KCNH2
muscular dystrophy | LMNA, TTN
Charcot-Marie-Tooth disease | LMNA
amyotrophic lateral sclerosis | ATXN2
Parkinson disease | ATXN2, ATXN3
atrial septal defect | MYH7
Ehlers-Danlos syndrome | COL1A1, COL1A2
familial breast cancer | MSH2, MLH1
hereditary deafness | COL4A3, GJB1
magnesium | transketolase, pyruvate dehydrogenase, alpha-ketoglutarate dehydrogenase, pyruvate carboxylase,
    propionyl-CoA carboxylase
manganese | pyruvate carboxylase, superoxide dismutase
zinc | superoxide dismutase, pyruvate carboxylase
iron | catalase, phenylalanine hydroxylase, tyrosine hydroxylase, xanthine oxidase, aconitase, succinate
    dehydrogenase, ferrochelatase
iron-sulfur clusters | succinate dehydrogenase, xanthine oxidase
heme | cystathionine beta-synthase, succinate dehydrogenase
vitamin B2 | xanthine oxidase, pyruvate dehydrogenase, alpha-ketoglutarate dehydrogenase
NAD+ | pyruvate dehydrogenase, alpha-ketoglutarate dehydrogenase, xanthine oxidase
NADP+ | glutathione reductase
fasting hypoglycemia | pyruvate carboxylase, propionyl-CoA carboxylase
lactic acidosis | fructose-1,6-bisphosphatase, medium-chain acyl-CoA dehydrogenase, propionyl-CoA carboxylase
hyperammonemia | arginase, pyruvate carboxylase, medium-chain acyl-CoA dehydrogenase
muscle cramps | pyruvate kinase
intellectual disability | cystathionine beta-synthase, ornithine transcarbamylase, argininosuccinate lyase,
    arginase, pyruvate dehydrogenase, pyruvate carboxylase, propionyl-CoA carboxylase
gluconeogenesis | malate dehydrogenase
glycolysis | pyruvate carboxylase, fructose-1,6-bisphosphatase
amino acid breakdown | arginase, argininosuccinate lyase
catecholamine production | phenylalanine hydroxylase
radical scavenging | glucose-6-phosphate dehydrogenase
leafy vegetables | iron, magnesium, calcium, potassium, riboflavin, retinol, tocopherol, ascorbic acid
meat | zinc, niacin, selenium, riboflavin, copper, thiamine, potassium, retinol
liver | iron, cobalamin, folate, riboflavin, niacin, zinc, cholecalciferol, selenium, thiamine, phylloquinone
milk | cobalamin, iodine, potassium, retinol, cholecalciferol, zinc, thiamine, magnesium, selenium
nuts | copper, selenium, tocopherol, zinc, thiamine, niacin, potassium, calcium, iron, folate, riboflavin
Brazil nuts | magnesium, copper, tocopherol, zinc, thiamine, potassium, calcium
oily fish | iodine, selenium, retinol, cobalamin, niacin, calcium, potassium, tocopherol, riboflavin
oysters | iron, copper, iodine, cobalamin, selenium, cholecalciferol, magnesium
seaweed | iron, calcium, magnesium, folate, phylloquinone, potassium
poultry | iron, cobalamin, selenium, zinc, thiamine, riboflavin, potassium
pork | zinc, niacin, selenium, iron, cobalamin, riboflavin, potassium
citrus fruit | folate, potassium, thiamine
bananas | magnesium, folate, ascorbic acid
vegetable oil | phylloquinone
tea | potassium, magnesium
redox reactions | copper, iron, selenium, ascorbic acid, thiamine, tocopherol
cell division | cobalamin, iron, magnesium, retinol, niacin
protection from oxidation | ascorbic acid, zinc, copper, riboflavin, retinol, niacin
bone mineralization | fluoride, magnesium, phylloquinone, zinc, retinol
collagen formation | zinc, iron
nerve conduction | calcium, thiamine, cobalamin
carbohydrate metabolism | niacin, magnesium, riboflavin, zinc
oxygen transport | copper
blood clotting | calcium
tooth enamel | calcium, cholecalciferol
tetany | cholecalciferol
neuropathy | thiamine, cobalamin, copper
rickets | calcium
muscle weakness | magnesium, cholecalciferol, selenium, calcium, tocopherol, thiamine
microcytic anemia | copper
poor wound healing | ascorbic acid
cracked lips | niacin, iron, folate, cobalamin, zinc
night blindness | zinc
"""
